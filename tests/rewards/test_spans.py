import sys

import pytest

from rlhf.errors import UserError
from rlhf.rewards.spans import span_exact_match, span_f1

SEVEN = {"text": ["seven in the evening", "7 pm"], "answer_start": [10, 40]}


@pytest.fixture(autouse=True)
def _installed(request):
    if "monkeypatch" not in request.fixturenames:
        pytest.importorskip("torchmetrics")


def test_by_hand():
    """Articles and punctuation do not count: "Seven, evening" has 2 of the 3 words of "seven in evening"."""
    replies = ["The seven in evening!", "Seven, evening", "7 pm", "eight", [{"role": "assistant", "content": "pm"}]]
    answers = {"answers": [SEVEN] * 5}
    assert span_f1(["q"] * 5, replies, **answers) == pytest.approx([1, 4 / 5, 1, 0, 2 / 3])
    assert span_exact_match(["q"] * 5, replies, **answers) == [1, 0, 1, 0, 0]


def test_a_word_counts_as_often_as_it_is_there():
    assert span_f1(["q"], ["table table"], answers=[["table for table two"]]) == pytest.approx([2 * 1 * 0.5 / 1.5])
    assert span_f1(["q"], ["table table"], answers=[["table two"]]) == pytest.approx([0.5])


@pytest.mark.parametrize("none", [{"text": [], "answer_start": []}, [], [""], ""])
def test_where_there_is_no_answer_an_empty_reply_is_right(none):
    for score in (span_f1, span_exact_match):
        assert score(["q"] * 3, ["", "seven", " "], answers=[none] * 3) == [1, 0, 1]
        assert score(["q"], [""], answers=[SEVEN]) == [0]


def test_answers_may_be_texts_in_a_column_of_any_name():
    assert span_f1(["q"] * 2, ["7 pm"] * 2, column="gold", gold=["7 pm", ["8 pm", "7 pm"]]) == [1, 1]
    assert span_f1(["q"] * 2, ["7 pm"] * 2, answers=[None, "7 pm"]) == [None, 1]
    assert span_exact_match(["q"], ["7 pm"]) == [None]


@pytest.mark.parametrize("value", [3, [3], {"texts": ["a"]}, {"text": None}])
def test_what_is_no_answer_is_refused(value):
    with pytest.raises(UserError, match="column 'answers': expected"):
        span_f1(["q"], ["a"], answers=[value])


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.text", None)
    with pytest.raises(UserError, match=r"torchmetrics is not installed.*\[metrics\]"):
        span_f1([], [])
