import sys

import pytest

from rlhf.errors import UserError
from rlhf.rewards.rouge import rouge

REFERENCE = "the cat sat on the mat"


def test_by_hand():
    """The subsequence "the cat on mat" has 4 words: recall 4/6, precision 4/5 (there is a dog), F1 8/11."""
    pytest.importorskip("rouge_score")
    reply = [{"role": "assistant", "content": "The cat, dog, on mat!"}]
    assert rouge(["q"], [reply], reference=[REFERENCE]) == pytest.approx([8 / 11])
    swapped = "mat on dog cat the"
    assert rouge(["q"], [swapped], kind="rouge1", reference=[REFERENCE]) == pytest.approx([8 / 11])
    assert rouge(["q"], [swapped], kind="rougeL", reference=[REFERENCE]) == pytest.approx([4 / 11]), "cat the"
    assert rouge(["q"], ["the cat"], kind="rouge2", column="gold", gold=[REFERENCE]) == pytest.approx([2 / 6])


def test_no_reference_is_no_score_but_an_empty_reply_is_zero():
    pytest.importorskip("rouge_score")
    assert rouge(["q"] * 3, ["a", "a", ""], reference=["a", None, "a"]) == [1.0, None, 0.0]
    assert rouge(["q"], ["a"]) == [None]


def test_what_is_wrong_is_said(monkeypatch):
    with pytest.raises(UserError, match="unknown kind 'rougel'; did you mean 'rougeL'"):
        rouge([], [], kind="rougel")
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"pip install rouge-score \(or rlhf-pipeline\[rouge\]\)"):
        rouge([], [])
