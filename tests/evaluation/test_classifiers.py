from __future__ import annotations

import math

import pytest

from rlhf.evaluation.classifiers import MACRO_F1, NEGATIVE_BRIER, classification, compare_classifiers
from tests.support.reports import reply

KINDS = {"sft": "label", "ppo": "label"}
PARENTS = {"sft": "base", "ppo": "sft"}


def row(index: int, label, **answers):
    """A row with the right class, and an answer of each policy with its probability."""
    replies = {
        policy: [{**reply(text), "log_prob": None if p is None else math.log(p)}]
        for policy, (text, p) in answers.items()
    }
    return {"index": index, "prompt": f"text {index}", "columns": {} if label is None else {"label": label},
            "replies": replies}  # fmt: skip


ROWS = [
    *(row(n, "a", sft=("a", 0.6), ppo=("a", 0.9)) for n in range(4)),
    *(row(n, "b", sft=("a", 0.5), ppo=("b", 0.8)) for n in range(4, 8)),
    row(8, "b", sft=("b", 0.6), ppo=("a", 0.7)),
    row(9, None, sft=("a", 0.6), ppo=("a", 0.6)),
]


def test_one_policy_by_hand():
    sft, ppo = classification(ROWS, KINDS, PARENTS)["policies"]
    assert (sft["policy"], sft["n"], sft["accuracy"]) == ("sft", 9, pytest.approx(5 / 9))
    assert sft["macro_f1"] == pytest.approx((8 / 12 + 2 / 6) / 2)
    assert sft["confidence"] == pytest.approx((5 * 0.6 + 4 * 0.5) / 9)
    assert sft["brier"] == pytest.approx((5 * 0.4**2 + 4 * 0.5**2) / 9)
    assert sft["grid"] == {"labels": ["a", "b"], "counts": [[4, 0], [4, 1]]}
    assert sft["confusions"] == [{"right": "b", "chosen": "a", "n": 4}]
    assert [(c["label"], c["rows"], c["chosen"]) for c in ppo["classes"]] == [("a", 4, 5), ("b", 5, 4)]
    assert sum(b["n"] for b in sft["calibration"]) == 9
    assert sft["ece"] == pytest.approx((5 * 0.4 + 4 * 0.5) / 9)


def test_rows_that_flipped():
    (found,) = classification(ROWS, KINDS, PARENTS)["flips"]
    assert (found["policy"], found["baseline"], found["n"]) == ("ppo", "sft", 9)
    assert (found["repaired"], found["broken"], found["p_value"]) == (4, 1, pytest.approx(0.375))
    assert [flip["index"] for flip in found["repaired_rows"]] == [4, 5, 6, 7]
    assert found["broken_rows"] == [
        {"index": 8, "prompt": "text 8", "right": "b", "baseline": "b", "policy": "a"}
    ]  # fmt: skip


def test_the_comparisons_of_all_rows_together():
    f1, brier = compare_classifiers(ROWS, KINDS, PARENTS)
    assert [f1["judge"], brier["judge"]] == [MACRO_F1, NEGATIVE_BRIER]
    assert f1["mean_difference"] == pytest.approx(8 / 9 - 0.5, abs=0.005)
    assert f1["policy_mean"] - f1["baseline_mean"] == pytest.approx(f1["mean_difference"])
    assert (f1["n"], f1["left_out"], f1["win_rate"]) == (9, 1, None)
    assert brier["policy_mean"] == pytest.approx(-(4 * 0.1**2 + 4 * 0.2**2 + 0.7**2) / 9)
    assert brier["mean_difference"] > 0
    assert brier["difference_ci"][0] < brier["mean_difference"] < brier["difference_ci"][1]
    assert brier["win_rate"] is None


def test_answers_without_a_probability_have_no_calibration():
    rows = [row(n, "a", sft=("a", None), ppo=("b", None)) for n in range(6)]
    del rows[0]["replies"]["sft"][0]["log_prob"]
    (policy, _) = classification(rows, KINDS, PARENTS)["policies"]
    assert (policy["confidence"], policy["brier"], policy["ece"], policy["calibration"]) == (None, None, None, [])
    assert [comparison["judge"] for comparison in compare_classifiers(rows, KINDS, PARENTS)] == [MACRO_F1]


def test_several_classes_at_once():
    rows = [row(0, ["a", "b"], sft=("b, a", 0.5)), row(1, [], sft=("", 0.9)), row(2, ["a"], sft=("a, b", 0.5))]
    (policy,) = classification(rows, {"sft": "label"}, PARENTS)["policies"]
    assert policy["accuracy"] == pytest.approx(2 / 3)
    assert (policy["grid"], policy["confusions"]) == (None, [])
    assert policy["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


def test_one_class_may_have_a_comma_in_its_name():
    (policy,) = classification([row(0, "hops, malt", sft=("hops, malt", 0.5))], {"sft": "label"}, PARENTS)["policies"]
    assert [measures["label"] for measures in policy["classes"]] == ["hops, malt"]


def test_many_classes_have_no_grid_and_no_label_no_section():
    rows = [row(n, f"class {n}", sft=("class 0", 0.5)) for n in range(30)]
    (policy,) = classification(rows, {"sft": "label"}, PARENTS)["policies"]
    assert policy["grid"] is None
    assert len(policy["confusions"]) == 29
    assert classification([row(0, None, sft=("a", 0.5))], {"sft": "label"}, PARENTS) is None
    assert classification(ROWS, {"sft": "causal_lm", "ppo": "seq2seq"}, PARENTS) is None


def span(index: int, answers: list[str], **said):
    """A row with the texts of the answers, and the span that each policy marked."""
    made = row(index, None, **said)
    columns = {"answers": {"text": answers, "answer_start": [0] * len(answers)}}
    return {**made, "prompt": f"Who?\n\ntext {index}", "columns": columns}


def test_spans_are_right_to_the_letter_or_rightly_none():
    rows = [
        span(0, ["Ada", "Ada L."], sft=("Ada L.", 0.5), ppo=("Ada", 0.9)),
        span(1, ["Ben"], sft=("Ben went", 0.4), ppo=("Ben", 0.8)),
        span(2, [], sft=("", 0.6), ppo=("Cleo", 0.2)),
        span(3, ["Dov"], sft=("", 0.6), ppo=("Dov", 0.7)),
    ]
    kinds = {"sft": "span", "ppo": "span"}
    found = classification(rows, kinds, PARENTS)
    sft, ppo = found["policies"]
    assert (sft["accuracy"], ppo["accuracy"]) == (0.5, 0.75)
    assert (sft["macro_f1"], sft["classes"], sft["grid"], sft["confusions"]) == (None, [], None, [])
    assert ppo["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.2**2 + 0.3**2) / 4)
    (flips,) = found["flips"]
    assert [flip["index"] for flip in flips["repaired_rows"]] == [1, 3]
    assert flips["broken_rows"] == [
        {"index": 2, "prompt": "Who?\n\ntext 2", "right": "", "baseline": "", "policy": "Cleo"}
    ]
    (brier,) = compare_classifiers(rows, kinds, PARENTS)
    assert brier["judge"] == NEGATIVE_BRIER
    assert brier["mean_difference"] == pytest.approx(((0.5**2 + 0.4**2 + 0.4**2 + 0.6**2) - 0.18) / 4)
