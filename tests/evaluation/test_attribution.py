from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.evaluation.attribution import (
    gradient_times_input,
    label_score,
    leave_one_out,
    of_reward_models,
    reward,
    token_texts,
)
from rlhf.rewards.model import RewardModel
from tests.support.models import save_classifier, strengthened
from tests.support.reports import make_row


class BagOfEmbeddings(nn.Module):
    """logits_c = w_c . (the sum of the embeddings) + 5: what each token adds to a logit is known exactly."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings, self.head = nn.Embedding(20, 4), nn.Linear(4, classes)
        nn.init.constant_(self.head.bias, 5.0)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(pad_token_id=0))

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.head((self.embeddings(input_ids) * attention_mask[..., None]).sum(1)))


IDS = [3, 7, 7, 11, 2]


def test_both_measures_of_a_linear_model_are_what_each_token_adds():
    model = BagOfEmbeddings()
    exact = (model.embeddings(torch.tensor(IDS)) @ model.head.weight[0]).tolist()
    assert gradient_times_input(model, IDS) == pytest.approx(exact, abs=1e-5)
    assert leave_one_out(model, IDS, batch_size=2) == pytest.approx(exact, abs=1e-5)
    assert min(abs(part) for part in exact) > 0.1
    assert sum(exact) == pytest.approx(reward(model(torch.tensor([IDS]), torch.ones(1, 5)).logits).item() - 5, abs=1e-5)


def test_of_two_classes_the_difference_of_their_logits_is_shared_out():
    model = BagOfEmbeddings(classes=2)
    against = model.head.weight[1] - model.head.weight[0]
    exact = (model.embeddings(torch.tensor(IDS)) @ against).tolist()
    assert gradient_times_input(model, IDS, label_score(1)) == pytest.approx(exact, abs=1e-5)
    assert leave_one_out(model, IDS, label_score(1)) == pytest.approx(exact, abs=1e-5)


def test_what_is_kept_has_no_part():
    model = BagOfEmbeddings()
    parts = leave_one_out(model, IDS, keep={7})
    assert [part != 0 for part in parts] == [True, False, False, True, True]
    assert parts[3] == pytest.approx(leave_one_out(model, IDS)[3], abs=1e-5)


def test_a_mask_takes_the_place_of_a_token():
    model = BagOfEmbeddings()
    values = (model.embeddings.weight @ model.head.weight[0]).tolist()
    parts = leave_one_out(model, IDS, mask_id=4)
    assert parts == pytest.approx([values[token] - values[4] for token in IDS], abs=1e-5)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bert"])
def test_models_of_transformers(kind, request, tmp_path):
    """Leaving a token out gives the difference of two scores; the gradient is that of a small step along the input."""
    folder = save_classifier(request.getfixturevalue(kind), tmp_path / "classifier", ("no", "yes", "perhaps"))
    model = strengthened(AutoModelForSequenceClassification.from_pretrained(folder).eval(), 3.0)
    score_of = label_score(1)

    def score(ids):
        return float(score_of(model(input_ids=torch.tensor([ids])).logits))

    ids = [9, 12, 40, 31, 8]
    with torch.no_grad():
        whole, without = score(ids), score([9, 12, 31, 8])
    parts = leave_one_out(model, ids, score_of, batch_size=3)
    assert parts[2] == pytest.approx(whole - without, abs=1e-4)
    assert abs(parts[2]) > 1e-3
    gradient = gradient_times_input(model, ids, score_of)
    assert max(map(abs, gradient)) > 1e-2
    scale = 1e-3
    for t in (1, 3):

        def scaled(module, given, output, t=t):
            return torch.cat([output[:, :t], output[:, t : t + 1] * (1 + scale), output[:, t + 1 :]], dim=1)

        handle = model.get_input_embeddings().register_forward_hook(scaled)
        with torch.no_grad():
            moved = (score(ids) - whole) / scale
        handle.remove()
        assert gradient[t] == pytest.approx(moved, rel=0.05, abs=0.02)
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bert"])
def test_the_score_of_a_reward_model_by_what_it_read(kind, request, tmp_path):
    """Prompt and completion as the judge renders them; the whole score is the judge's."""
    folder = save_classifier(request.getfixturevalue(kind), tmp_path / "scorer", ("score",))
    judge = RewardModel(folder)
    strengthened(judge.model, 3.0)
    row = make_row(4, dpo=[None])
    row["replies"]["dpo"][0]["text"] = "Yes, of course"
    (found,) = of_reward_models({"reward": judge, "length": lambda *_, **__: []}, [row, make_row(5, sft=[0.1])], "dpo")
    assert (found["index"], found["scorer"], found["of"]) == (4, "reward", "dpo")
    assert found["score"] == pytest.approx(judge(["prompt 4"], ["Yes, of course"])[0], abs=1e-4)
    text = "".join(found["tokens"]).replace(" ", "").replace("##", "").lower()
    assert "prompt4" in text
    assert "yes," in text
    assert len(found["tokens"]) == len(found["leave_one_out"]) == len(found["gradient_times_input"])
    if kind == "tiny_bert":
        ids, _ = judge.codec.sequence("prompt 4", "Yes, of course")
        masked = leave_one_out(judge.model, ids, mask_id=judge.tokenizer.mask_token_id)
        frame = {judge.tokenizer.cls_token_id, judge.tokenizer.sep_token_id}
        expected = [0.0 if token in frame else part for token, part in zip(ids, masked, strict=True)]
        assert found["leave_one_out"] == pytest.approx(expected, abs=1e-6)
        assert masked[0] != 0.0, "[CLS] is what the head reads"


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bert"])
def test_the_texts_of_tokens_are_the_text(kind, request):
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(kind))
    ids = tokenizer("How do I send 50 € to Zürich? 🙂 ok")["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids)
