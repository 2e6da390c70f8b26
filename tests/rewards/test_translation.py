import math
import sys

import pytest

from rlhf.errors import UserError
from rlhf.rewards.translation import bleu, chrf

REFERENCE = "the cat sat on the mat"


@pytest.fixture(autouse=True)
def _installed(request):
    if "monkeypatch" not in request.fixturenames:
        pytest.importorskip("sacrebleu")


def test_bleu_by_hand():
    """Of "the cat sat on a mat": 5/6 words, 3/5 pairs, 2/4 triples, 1/3 quadruples; no brevity penalty."""
    reply = [{"role": "assistant", "content": "the cat sat on a mat"}]
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert bleu(["q"], [reply], reference=[REFERENCE]) == pytest.approx([expected])


def test_a_short_sentence_is_not_punished_for_orders_that_it_cannot_have():
    """Two words have no triples; half of the reference's length costs exp(1 - 4/2)."""
    assert bleu(["q"] * 2, ["good day", "good"], reference=["good day", "good"]) == pytest.approx([1, 1])
    assert bleu(["q"], ["a b"], reference=["a b c d"]) == pytest.approx([math.exp(-1)])


def test_chrf_by_hand():
    """For "abd" of "abc", 2/3 letters, 1/2 pairs, 0 triples: precision and recall 7/18, and so their F2."""
    assert chrf(["q"], ["abd"], reference=["abc"]) == pytest.approx([7 / 18])
    recall, precision = (1 + 1) / 2, (2 / 3 + 1 / 2) / 2
    assert chrf(["q"], ["abc"], reference=["ab"]) == pytest.approx([5 * precision * recall / (4 * precision + recall)])
    letters, words = chrf(["q"], ["abd"], reference=["abc"])[0], chrf(["q"], ["abd"], word_order=1, reference=["abc"])
    assert words == pytest.approx([letters * 3 / 4]), "one word of one, wrong, is a fourth order"


@pytest.mark.parametrize("score", [bleu, chrf])
def test_from_0_to_1_and_none_without_a_reference(score):
    assert score(["q"] * 3, [REFERENCE, "", "xyz"], reference=[REFERENCE] * 3) == pytest.approx([1, 0, 0], abs=1e-6)
    assert score(["q"] * 2, ["a", "a"], column="gold", gold=["a", None], reference=["b", "b"]) == [
        pytest.approx(1),
        None,
    ]
    assert score(["q"], ["a"]) == [None]


@pytest.mark.parametrize("order", [-1, "2", 1.5])
def test_an_order_that_is_none_is_refused(order):
    with pytest.raises(UserError, match="word_order must be a whole number"):
        chrf([], [], word_order=order)


@pytest.mark.parametrize("score", [bleu, chrf])
def test_a_package_that_is_missing_is_named(score, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"sacrebleu is not installed.*\[metrics\]"):
        score([], [])
