"""Encoder-decoders: sampled as they are read, encoded once, and trained on demonstrations as on completions."""

import io
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

from rlhf.artifacts.open import open_model, open_stage
from rlhf.config.project import ModelConfig
from rlhf.data.records import Demonstration, Labelled, Prompt, Unusable
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.load import Source
from rlhf.models.roles import Roles, disable_dropout
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.pipeline.folder import own_folder
from rlhf.policies.completion import Completion, row_seed
from rlhf.policies.sampling_check import check_encoder_decoder
from rlhf.policies.seq2seq import Seq2SeqKind, Seq2SeqPolicy, SourceRow
from rlhf.policies.seq2seq_sampler import start_ids
from rlhf.policies.settings import SamplingSettings
from rlhf.publish import build
from rlhf.serving.chat import Conversation
from rlhf.serving.replies import PolicyReplier, Sampling
from tests.support.models import strengthened
from tests.support.projects import make_project, pairs

TEXTS = [
    "Please send order 48213 back to us.",
    "Hello Ada",
    "a",
    "The kettle arrives on Monday; thank you for waiting.",
]
FACTORS = {"tiny_t5": 1.5, "tiny_bart": 8.0}


def kind_of(folder) -> Seq2SeqKind:
    return Seq2SeqKind(open_model(ModelConfig(name_or_path=str(folder))))


def settings(**changes):
    return SimpleNamespace(max_length=None, truncation_mode="keep_start", **changes)


@pytest.fixture(params=FACTORS)
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def model(folder, request):
    factor = FACTORS[request.node.callspec.params["folder"]]
    return strengthened(AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), factor)


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def sampled(model, tokenizer, texts=TEXTS, samples=3, size=9, temperature=0.8, batch_size=64):
    policy = Seq2SeqPolicy(Roles(model), tokenizer, size, temperature, batch_size)
    rows = [SourceRow(tokenizer(text)["input_ids"], text, {}) for text in texts]
    return policy.sample(rows, [[row_seed(text, number) for number in range(samples)] for text in texts])


def plain_log_probs(model, tokenizer, text, ids, temperature):
    """By the model's own forward pass from labels, nothing cached, one row."""
    starts = start_ids(model)
    logits = model(
        input_ids=torch.tensor([tokenizer(text)["input_ids"]]), decoder_input_ids=torch.tensor([[*starts, *ids[:-1]]])
    ).logits[0, len(starts) - 1 :]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [2, 64])
def test_log_probabilities_are_those_of_the_model_read_plainly(model, tokenizer, batch_size):
    groups = sampled(model, tokenizer, batch_size=batch_size)
    for text, group in zip(TEXTS, groups, strict=True):
        for completion in group:
            expected = plain_log_probs(model, tokenizer, text, completion.ids, 0.8)
            assert completion.log_probs == pytest.approx(expected, abs=1e-4)
            assert completion.text == tokenizer.decode(completion.ids, skip_special_tokens=True)
    assert len({tuple(completion.ids) for completion in groups[0]}) == 3


@torch.no_grad()
def test_halves_of_different_depth(tiny_t5, tiny_tokenizer):
    config = AutoConfig.from_pretrained(tiny_t5, num_decoder_layers=3)
    model = strengthened(AutoModelForSeq2SeqLM.from_config(config).eval(), 1.5)
    ((completion,),) = sampled(model, tiny_tokenizer, ["Hello Ada"], 1)
    expected = plain_log_probs(model, tiny_tokenizer, "Hello Ada", completion.ids, 0.8)
    assert completion.log_probs == pytest.approx(expected, abs=1e-4)


def test_a_completion_depends_on_its_input_and_seed_alone(model, tokenizer):
    together = sampled(model, tokenizer)
    for text, group in zip(TEXTS, together, strict=True):
        alone = sampled(model, tokenizer, [text], batch_size=1)[0]
        assert [completion.ids for completion in alone] == [completion.ids for completion in group]


@torch.no_grad()
def test_greedy_is_what_generate_writes(model, tokenizer):
    groups = sampled(model, tokenizer, samples=1, temperature=0.0)
    model.generation_config.forced_eos_token_id = None  # which ends what was cut
    for text, (completion,) in zip(TEXTS, groups, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        expected = model.generate(
            input_ids=ids, do_sample=False, num_beams=1, max_new_tokens=9 + len(start_ids(model)) - 1
        )
        assert expected[0, len(start_ids(model)) :].tolist() == completion.ids


@torch.no_grad()
def test_an_input_is_encoded_once_and_what_ended_leaves_the_batch(model, tokenizer):
    """With tokens that are sampled first as end tokens, the completions that begin so leave the batch at once."""
    first = {completion.ids[0] for completion in sampled(model, tokenizer, ["Hello Ada"], 8)[0][:4]}
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *first]
    encoded, decoded = [], []
    model.get_encoder().register_forward_pre_hook(
        lambda module, args, kwargs: encoded.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: decoded.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    groups = sampled(model, tokenizer, ["Hello Ada", "a"], 8)
    assert sum(encoded) == 2
    assert decoded[0] == (2, len(start_ids(model)))
    left = 16
    for step, shape in enumerate(decoded[1:], 1):
        going = sum(len(completion.ids) > step for group in groups for completion in group)
        assert shape == (shape[0], 1)
        assert going <= shape[0] <= left
        left = shape[0]
    ended = [completion for group in groups for completion in group if completion.ids[-1] in first]
    assert ended
    assert all(completion.finished for completion in ended)
    assert left < 16
    for completion in (each for group in groups for each in group):
        assert completion.finished or len(completion.ids) == 9


@torch.no_grad()
def test_values_stand_before_each_token_and_stay_after_the_last(model, tokenizer):
    policy = Seq2SeqPolicy(Roles(model, torch.nn.Linear(32, 1), model.base_model), tokenizer, 9, 1.0, 8)
    rows = [SourceRow(tokenizer(text)["input_ids"], text, {}) for text in TEXTS[:2]]
    ids = [[[7, 8], [9, 10, 11, 12, 13]], [[14], [15, 16]]]
    packed = policy.pack(rows, [[Completion(each, True) for each in group] for group in ids])
    values_BU = policy.values(packed)
    assert values_BU.shape == (4, 6)
    pairs = [(row, each) for row, group in zip(rows, ids, strict=True) for each in group]
    for values_U, (row, each) in zip(values_BU, pairs, strict=True):
        output = model(
            input_ids=torch.tensor([row.ids]), decoder_input_ids=torch.tensor([[*start_ids(model), *each]]),
            output_hidden_states=True,
        )  # fmt: skip
        states = output.decoder_hidden_states[-1][0, len(start_ids(model)) - 1 :]
        expected = policy.roles.value(states)
        assert values_U[: len(each) + 1].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
        assert (values_U[len(each) :] == values_U[len(each)]).all()


def test_what_the_decoder_starts_with_is_no_action(tiny_t5, tiny_bart, tiny_tokenizer):
    bart, t5 = (AutoModelForSeq2SeqLM.from_pretrained(folder) for folder in (tiny_bart, tiny_t5))
    assert start_ids(t5) == [tiny_tokenizer.pad_token_id]
    assert start_ids(bart) == [tiny_tokenizer.eos_token_id, 5]
    t5.config.decoder_start_token_id = t5.generation_config.decoder_start_token_id = None
    with pytest.raises(UserError, match="decoder_start_token_id"):
        start_ids(t5)


# demonstrations


def test_a_demonstration_is_an_input_and_a_target_that_ends(tiny_t5, tiny_tokenizer):
    encode = kind_of(tiny_t5).demonstrations(settings()).encode
    row = encode(Demonstration("Hello Ada", "thank you"))
    eos = tiny_tokenizer.eos_token_id
    assert row.columns == {
        "input_ids": tiny_tokenizer("Hello Ada")["input_ids"],
        "labels": [*tiny_tokenizer("thank you")["input_ids"], eos],
    }
    assert (row.truncated, row.eos_lost, row.prompt_trimmed) == (False, False, False)
    assert encode(Demonstration("a", "")).columns["labels"] == [eos]


@pytest.mark.parametrize(
    ("prompt", "completion", "flags"),
    [("0123", "a", (False, False, False)), ("01234", "a", (True, False, True)),
     ("a", "0123", (True, True, False)), ("a", "012", (False, False, False)), ("01234", "0123", (True, True, True))],
)  # fmt: skip
def test_what_is_cut_is_counted(tiny_t5, prompt, completion, flags):
    row = (
        kind_of(tiny_t5)
        .demonstrations(SimpleNamespace(max_length=4, truncation_mode="keep_start"))
        .encode(Demonstration(prompt, completion))
    )
    assert (row.truncated, row.eos_lost, row.prompt_trimmed) == flags
    assert max(map(len, row.columns.values())) <= 4


@pytest.mark.parametrize(("keep", "left"), [("keep_start", "012"), ("keep_end", "456")])
def test_the_tokens_that_frame_a_text_outlive_a_cut(tmp_path, tiny_bart, keep, left):
    from tokenizers import processors

    folder = tmp_path / "framed"
    shutil.copytree(tiny_bart, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A <|end|>", special_tokens=[("<|pad|>", tokenizer.pad_token_id), ("<|end|>", eos)]
    )
    tokenizer.save_pretrained(folder)
    kind = kind_of(folder)
    before = kind.tokenizer.truncation_side, kind.tokenizer.backend_tokenizer.truncation
    encode = kind.demonstrations(SimpleNamespace(max_length=5, truncation_mode=keep)).encode
    columns = encode(Demonstration("0123456", "a")).columns
    assert columns["input_ids"] == tokenizer(left)["input_ids"]
    assert columns["labels"] == tokenizer("a")["input_ids"]  # has its end already
    assert before == (kind.tokenizer.truncation_side, kind.tokenizer.backend_tokenizer.truncation)


def test_what_it_cannot_learn_from_is_said(tiny_t5, tmp_path):
    kind = kind_of(tiny_t5)
    encode = kind.demonstrations(settings()).encode
    turns = [{"role": "user", "content": "hi"}]
    for record in (Demonstration(turns, [{"role": "assistant", "content": "yes"}], origin="f:1"),
                   Labelled("hi", ("a",), origin="f:1")):  # fmt: skip
        with pytest.raises(UserError, match=r"^f:1: an encoder-decoder"):
            encode(record)
    with pytest.raises(Unusable, match="without a token"):
        kind.prompts(None).encode(Prompt(""))
    shutil.copytree(tiny_t5, tmp_path / "endless")
    endless = AutoTokenizer.from_pretrained(tiny_t5)
    endless.eos_token = None
    endless.save_pretrained(tmp_path / "endless")
    with pytest.raises(UserError, match=r"model\.eos_token"):
        kind_of(tmp_path / "endless").demonstrations(settings())


def test_what_it_cannot_sample_with_is_said(tiny_t5, tiny_bart):
    plain = {"max_length": None, **vars(SamplingSettings())}
    with pytest.raises(UserError, match=r"^sampler"):
        kind_of(tiny_t5).prompts(SimpleNamespace(**{**plain, "sampler": "vllm"}))
    with pytest.raises(UserError, match=r"^max_new_tokens: 64"):
        kind_of(tiny_bart).prompts(SimpleNamespace(**{**plain, "max_new_tokens": 64}))
    kind_of(tiny_bart).prompts(SimpleNamespace(**{**plain, "max_new_tokens": 63}))


def test_a_long_prompt_is_cut_to_the_encoders_limit(tiny_bart):
    rows = [kind_of(tiny_bart).prompts(None).encode(Prompt("0" * size)) for size in (64, 65)]
    assert [len(row.columns["input_ids"]) for row in rows] == [64, 64]
    assert [row.truncated for row in rows] == [False, True]


def trained(folder, out, size, smoothing=0.0, steps=3):
    """Demonstrations learned in steps of eight, this many at once."""
    kind = kind_of(folder)
    encode = kind.demonstrations(settings()).encode
    rows = [encode(Demonstration(text, text[:number])).columns for number, text in enumerate(TEXTS * 6, 2)]
    args = TrainingArguments(
        str(out), per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, max_steps=steps, optim="sgd",
        learning_rate=0.5, max_grad_norm=0.0, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_steps=1, label_smoothing_factor=smoothing, remove_unused_columns=False, lr_scheduler_type="constant",
    )  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    supervised = kind.supervised(model, None, args)
    disable_dropout(model)
    trainer = Trainer(
        model, args, train_dataset=rows, data_collator=supervised.collator, compute_loss_func=supervised.loss
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], model.state_dict()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_demonstrations_one_by_one_teach_what_they_teach_together(folder, tmp_path, smoothing):
    """The models' own loss would weigh every micro-batch alike, whatever its tokens."""
    (losses, weights), (same_losses, same) = (trained(folder, tmp_path / str(size), size, smoothing) for size in (1, 8))
    assert losses == pytest.approx(same_losses, rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, same[name], atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_smoothed_mean_over_tokens(tiny_t5):
    """Two rows, two tokens of four: three of them count. p = softmax; 0.9 · (−log p_y) + 0.1 · mean(−log p)."""
    kind, model = kind_of(tiny_t5), AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    logits = torch.tensor([[[2.0, 0, 0, 0], [0, 1.0, 0, 0]], [[0, 0, 0, 3.0], [9.0, 0, 0, 0]]])
    labels = torch.tensor([[0, 1], [3, -100]])
    shown = []
    for smoothing in (0.0, 0.1):
        supervised = kind.supervised(model, None, settings(label_smoothing_factor=smoothing))
        shown.append(supervised.loss({"logits": logits}, labels).item())
        assert supervised.loss({"logits": logits}, labels, num_items_in_batch=6).item() == pytest.approx(shown[-1] / 2)
    norm = [torch.tensor([value, 0, 0, 0.0]).logsumexp(0).item() for value in (2.0, 1.0, 3.0)]
    likelihood = [norm[0] - 2, norm[1] - 1, norm[2] - 3]
    spread = [norm[0] - 2 / 4, norm[1] - 1 / 4, norm[2] - 3 / 4]
    assert shown[0] == pytest.approx(sum(likelihood) / 3)
    assert shown[1] == pytest.approx(0.9 * sum(likelihood) / 3 + 0.1 * sum(spread) / 3)


def test_the_decoders_inputs_stand_at_the_start_whatever_the_tokenizers_side(tiny_t5):
    kind = kind_of(tiny_t5)
    kind.tokenizer.padding_side = "left"
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    collate = kind.supervised(model, None, settings(label_smoothing_factor=0.0)).collator
    batch = collate([{"input_ids": [7, 8, 9], "labels": [4, 5]}, {"input_ids": [6], "labels": [3, 4, 5], "x": "y"}])
    pad = kind.tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[7, 8, 9], [6, pad, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[4, 5, -100], [3, 4, 5]]
    assert batch["decoder_input_ids"].tolist() == [[pad, 4, 5], [pad, 3, 4]]
    assert kind.tokenizer.padding_side == "left"


# around it


@torch.no_grad()
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_probe_notices_either_half(model, part):
    made = probe.make(model, [[5, 6, 7, 1], [9, 9, 1]])
    logits = model(input_ids=torch.tensor([[9, 9, 1]]), labels=torch.tensor([[9, 9, 1]])).logits[0].log_softmax(-1)
    assert made["outputs"][1] == pytest.approx((logits[0, 9] + logits[1, 9] + logits[2, 1]).item(), abs=1e-4)
    probe.check(model, made, "it")
    half = getattr(model, f"get_{part}")()
    next(weight for name, weight in half.named_parameters() if weight.dim() == 2 and "embed" not in name).mul_(1.1)
    with pytest.raises(UserError, match="scored"):
        probe.check(model, made, "it")


@torch.no_grad()
def test_it_can_be_talked_to(model, tokenizer):
    (greedy,) = sampled(model, tokenizer, ["Hello Ada"], 1, temperature=0.0)[0]
    conversation = Conversation(PolicyReplier(model, tokenizer, "it", as_messages=False))
    model.generation_config.forced_eos_token_id = None
    out = io.StringIO()
    assert conversation.reply("Hello Ada", Sampling(0.0, 9), out) == greedy.text.strip()
    limit = conversation.replier.limit
    if limit is not None:
        conversation.reply("0" * limit, Sampling(0.0, 4), out)
        with pytest.raises(Unusable, match="no room"):
            conversation.reply("0" * (limit + 1), Sampling(0.0, 4), out)


RUN = {
    "rewards": {
        "chrf": {"function": "rlhf.rewards.translation:chrf"},
        "rouge": {"function": "rlhf.rewards.rouge:rouge"},
    },
    "stages": {
        "sft": {"max_steps": 3, "learning_rate": 1e-2, "max_length": 48},
        "ppo": {"max_steps": 2, "advantage": "rloo", "samples_per_prompt": 4, "max_new_tokens": 6, "save_steps": 1,
                "save_strategy": "steps", "checkpoint_judge": "chrf", "per_device_train_batch_size": 8},
    },
    "evaluate": {"prompts": 4, "samples": 2, "max_new_tokens": 6},
}  # fmt: skip


def test_a_run_is_trained_judged_compared_and_published(tiny_bart, tmp_path):
    """Two adapters joined on the original base; the reference of a demonstration is what a reward compares with."""
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs()]
    data = {"demonstrations": {"source": str(tmp_path / "pairs.jsonl"), "holdout": 0.5}}
    project = make_project(tmp_path, tiny_bart, rows, data=data, **RUN)
    own_folder(project)
    for stage in ("sft", "ppo", "evaluate"):
        prepare_stage(project, stage)
    for stage in ("sft", "ppo", "evaluate"):
        run_stage(project, stage)
    compared = [json.loads(line) for line in (project.run_dir / "evaluate" / "samples.jsonl").read_text().splitlines()]
    assert set(compared[0]["replies"]) == {"base", "sft", "ppo"}
    for reply in compared[0]["replies"]["ppo"]:
        assert reply["scores"]["chrf"] is not None
        assert reply["kl"] is not None
    opened = open_stage(project.run_dir / "ppo")
    assert opened.source == Source(str(tiny_bart), None, project.run_dir / "ppo")
    adapter = json.loads((project.run_dir / "ppo" / "adapter_config.json").read_text())
    assert (adapter["task_type"], adapter["r"]) == ("SEQ_2_SEQ_LM", 8)
    for merge in (False, True):
        folder = tmp_path / f"merged-{merge}"
        assert build.build_folder(project.run_dir, "ppo", folder, merge=merge).verified
        card = (folder / "README.md").read_text()
        assert "text to text" in card
        assert "pipeline_tag: text2text-generation" in card
        code = card.partition("```python")[2].partition("```")[0]
        names = {
            "path/to/this/folder": str(folder), f"./{tiny_bart.name}": str(tiny_bart), "new_tokens=128": "new_tokens=8",
        }  # fmt: skip
        for name, place in names.items():
            code = code.replace(name, place)
        exec(compile(code, "card", "exec"), {})


def other(name: str):
    """A tiny encoder-decoder of another architecture, with larger weights."""
    special = {
        "vocab_size": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "decoder_start_token_id": 0,
    }
    half = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
            "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "sliding_window": 8}  # fmt: skip
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    bart = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
            "max_position_embeddings": 64}  # fmt: skip
    fields = {
        "mt5": t5, "longt5": t5, "switch_transformers": {**t5, "num_experts": 2}, "marian": bart, "pegasus": bart,
        "led": {**bart, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64,
                "attention_window": 4},
        "m2m_100": {**bart, "decoder_start_token_id": 1}, "t5gemma": {"encoder": half, "decoder": dict(half)},
    }[name]  # fmt: skip
    set_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(name, **{**special, **fields})).eval()
    return strengthened(model, 2.0 if fields is t5 else 8.0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mt5", "longt5", "marian", "pegasus", "led", "m2m_100", "t5gemma"])
def test_other_architectures_are_sampled_as_they_are_read(name, tiny_tokenizer):
    model = other(name)
    check_encoder_decoder(model)
    policy = Seq2SeqPolicy(Roles(model), tiny_tokenizer, 6, 1.0, 64)
    rows = [SourceRow(ids, "", {}) for ids in ([5, 6, 7, 8, 9], [11, 12])]
    completions = policy.sample(rows, [[1, 2], [3, 4]])
    log_probs_BT, _ = policy.log_probs(policy.pack(rows, completions))
    for row, completion in enumerate(each for group in completions for each in group):
        assert log_probs_BT[row, : len(completion.ids)].tolist() == pytest.approx(completion.log_probs, abs=1e-4)


def test_an_architecture_that_cannot_be_sampled_is_refused_before_it_is_trained(tmp_path, tiny_tokenizer, monkeypatch):
    with pytest.raises(UserError, match="SwitchTransformersForConditionalGeneration cannot be sampled"):
        check_encoder_decoder(other("switch_transformers"))
    model = other("mt5")
    forward = type(model).forward

    def forgetful(self, *args, past_key_values=None, **kwargs):
        return forward(self, *args, past_key_values=None, **kwargs)

    monkeypatch.setattr(type(model), "forward", forgetful)
    with pytest.raises(UserError, match="nats from a forward pass"):
        check_encoder_decoder(model)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs()]
    data = {"demonstrations": {"source": str(tmp_path / "pairs.jsonl"), "holdout": 0.5}}
    project = make_project(tmp_path, tmp_path / "base", rows, data=data, **RUN)
    with pytest.raises(UserError, match="nats from a forward pass"):
        run_stage(project, "sft")
