import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.errors import UserError
from rlhf.models.tokenizer import ends_in_eos, mark_eos
from rlhf.rewards.model import RewardModel
from tests.support.models import save_classifier
from tests.support.runs import add_stage

PROMPTS = ["Where is the lamp? ", "Hello "]
REPLIES = ["It arrives on Monday.", "no"]


@pytest.fixture(scope="module")
def sentiment(tiny_bert, tmp_path_factory):
    return save_classifier(tiny_bert, tmp_path_factory.mktemp("sentiment"), ("negative", "positive"))


def logits_of(folder, *texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(*texts, return_token_type_ids=False, return_tensors="pt")
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits


def test_of_two_labels_the_score_is_the_difference_of_the_logits(sentiment):
    texts = [prompt + reply for prompt, reply in zip(PROMPTS, REPLIES, strict=True)]
    wanted = [(logits_of(sentiment, text)[0, 1] - logits_of(sentiment, text)[0, 0]).item() for text in texts]
    by_name = RewardModel(sentiment, label="positive")(PROMPTS, REPLIES)
    assert by_name == pytest.approx(wanted, abs=1e-5)
    assert by_name[0] != pytest.approx(by_name[1])
    assert RewardModel(sentiment, label=1)(PROMPTS, REPLIES) == by_name
    opposite = RewardModel(sentiment, label="negative")(PROMPTS, REPLIES)
    assert opposite == pytest.approx([-score for score in by_name], abs=1e-5)


def test_a_classifier_needs_a_label_and_a_reward_model_none(sentiment, tiny_bert, tmp_path):
    with pytest.raises(UserError, match=r"has 2 labels; say which is wanted with label: 0 \(negative\), 1"):
        RewardModel(sentiment)
    single = save_classifier(tiny_bert, tmp_path, ("score",))
    assert RewardModel(single)(["Hello"], ["no"]) == pytest.approx(
        logits_of(single, "Hello", "no")[0].tolist(), abs=1e-5
    )
    with pytest.raises(UserError, match="has one label"):
        RewardModel(single, label="score")


def test_a_text_above_the_limit_keeps_its_end_and_what_an_encoders_head_reads(tiny_bert, tiny_llama, tmp_path):
    for base in (tiny_bert, tiny_llama):
        judge = RewardModel(save_classifier(base, tmp_path / base.name, ("score",)))
        limit = judge.model.config.max_position_embeddings
        ids, _ = judge.codec.sequence("lamp " * limit, "Hello Ada")
        kept = [ids[0], *ids[1 - limit :]] if base == tiny_bert else ids[-limit:]
        with torch.no_grad():
            wanted = judge.model(input_ids=torch.tensor([kept])).logits[0].tolist()
        assert judge(["lamp " * limit], ["Hello Ada"]) == pytest.approx(wanted, abs=1e-5)


def test_a_classifier_whose_labels_do_not_exclude_one_another(tiny_bert, tmp_path):
    folder = save_classifier(tiny_bert, tmp_path, ("rude", "long"), problem_type="multi_label_classification")
    wanted = logits_of(folder, "Hello no")[0, 0].item()
    assert RewardModel(folder, label="rude")(["Hello "], ["no"]) == pytest.approx([wanted], abs=1e-5)


def test_the_adapter_of_a_classifier(tiny_llama, tmp_path):
    add_stage(tmp_path, "sft", tiny_llama, labels=3)
    scores = [RewardModel(tmp_path / "sft", label=label)(["Hello "], ["no"])[0] for label in range(3)]
    odds = torch.tensor(scores, dtype=torch.float64).sigmoid()
    assert odds.sum().item() == pytest.approx(1, abs=1e-5), "they are the odds of one distribution"
    weights = tmp_path / "sft/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: is cut short"):
        RewardModel(tmp_path / "sft", label=0)


TURNS = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</' + m['role'] + '>\n' }}{% endfor %}"
ASKED = [[{"role": "user", "content": "Where?"}]]
ANSWERED = [[{"role": "assistant", "content": "Here."}]]


@pytest.mark.parametrize(
    ("template", "end"),
    [(TURNS, "</assistant>\n"), ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "<|end|>")],
)
def test_a_model_from_outside_reads_what_its_template_gives(tiny_llama, tmp_path, template, end):
    folder = save_classifier(tiny_llama, tmp_path / "theirs", ("score",))
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(ASKED[0] + ANSWERED[0], tokenize=False)
    wanted = logits_of(folder, text.removesuffix(end) + end).item()
    assert RewardModel(folder)(ASKED, ANSWERED) == pytest.approx([wanted], abs=1e-5)


def test_a_model_of_ours_reads_the_eos_it_was_trained_with(tiny_llama, tmp_path):
    folder = save_classifier(tiny_llama, tmp_path / "ours", ("score",))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TURNS
    mark_eos(tokenizer)
    tokenizer.save_pretrained(folder)
    assert ends_in_eos(AutoTokenizer.from_pretrained(folder)), "wherever it is published to"
    text = tokenizer.apply_chat_template(ASKED[0] + ANSWERED[0], tokenize=False)
    assert RewardModel(folder)(ASKED, ANSWERED) == pytest.approx([logits_of(folder, text + "<|end|>").item()], abs=1e-5)
    assert logits_of(folder, text + "<|end|>").item() != pytest.approx(logits_of(folder, text).item(), abs=1e-4)
