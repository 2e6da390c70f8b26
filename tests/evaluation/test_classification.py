from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf.evaluation.classification import (
    brier_scores,
    class_measures,
    class_names,
    compare_macro_f1,
    confusion_counts,
    confusions,
    correct,
    flips,
    macro_f1,
)


def said(*rows: str) -> list[frozenset[str]]:
    """One text a row: its classes, with commas between."""
    return [frozenset(row.split(",")) if row else frozenset() for row in rows]


RIGHT = said("a", "a", "a", "b", "b", "c")
CHOSEN = said("a", "a", "b", "b", "c", "d")


def test_class_measures_by_hand():
    a, b, c, d = class_measures(RIGHT, CHOSEN)
    assert (a["label"], a["precision"], a["recall"], a["rows"], a["chosen"]) == ("a", 1.0, 2 / 3, 3, 2)
    assert a["f1"] == pytest.approx(0.8)
    assert (b["precision"], b["recall"], b["f1"]) == (0.5, 0.5, 0.5)
    assert (c["precision"], c["recall"], c["f1"]) == (0.0, 0.0, 0.0)
    assert (d["precision"], d["recall"], d["f1"], d["rows"]) == (0.0, None, 0.0, 0)


def test_macro_f1_is_the_mean_over_the_classes_that_occur():
    assert macro_f1(RIGHT, CHOSEN) == pytest.approx((0.8 + 0.5 + 0.0) / 3)
    assert macro_f1(RIGHT, RIGHT) == 1.0
    assert math.isnan(macro_f1(said("", ""), said("a", "")))


def test_several_classes_at_once():
    right, chosen = said("a,b", "a", "", "b"), said("a", "a,b", "a", "b")
    # a: 2 hits, 2 of it, 3 said; b: 1 hit, 2 of it, 2 said
    assert macro_f1(right, chosen) == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert correct(right, chosen).tolist() == [0, 0, 0, 1]


def test_confusions():
    names = class_names(RIGHT)
    assert confusion_counts(RIGHT, CHOSEN, [*names, "d"]) == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    found = confusions(said("a", "a", "b", "a"), said("b", "b", "a", "a"))
    assert found == [{"right": "a", "chosen": "b", "n": 2}, {"right": "b", "chosen": "a", "n": 1}]
    assert sum(mistake["n"] for mistake in confusions(RIGHT, CHOSEN)) == 3


def test_classes_stand_in_the_order_people_write_them():
    assert class_names(said("10", "9", "class 2", "class 10", "1")) == ["1", "9", "10", "class 2", "class 10"]


def test_brier_scores_by_hand():
    scores = brier_scores(np.array([0.9, 0.9, 0.5, math.nan]), np.array([1.0, 0.0, 1.0, 1.0]))
    assert scores[:3].tolist() == pytest.approx([0.01, 0.81, 0.25])
    assert math.isnan(scores[3])


def test_the_brier_score_is_least_at_the_true_chance():
    correct_N = np.array([1.0] * 7 + [0.0] * 3)
    means = {p: brier_scores(np.full(10, p), correct_N).mean() for p in (0.5, 0.6, 0.7, 0.8, 0.9)}
    assert min(means, key=means.__getitem__) == 0.7


def test_flips_and_their_exact_test():
    right = said(*"aaaaaaaaaa")
    policy, baseline = correct(right, said(*"aaaaaaaabb")), correct(right, said(*"bbbbbbbaab"))
    found = flips(policy, baseline)
    assert found.repaired == [0, 1, 2, 3, 4, 5, 6]
    assert found.broken == [8]
    assert found.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    assert flips(baseline, policy).p_value == found.p_value
    assert flips(policy, policy).p_value == 1.0


def answers(rng: np.random.Generator, right: np.ndarray, accuracy: float) -> list[frozenset[str]]:
    wrong = rng.integers(0, 5, len(right))
    return said(*(str(n) for n in np.where(rng.random(len(right)) < accuracy, right, wrong)))


def test_two_classifiers_on_the_same_rows():
    rng = np.random.default_rng(0)
    right_N = rng.integers(0, 5, 200)
    right, policy, baseline = said(*map(str, right_N)), answers(rng, right_N, 0.8), answers(rng, right_N, 0.5)
    found = compare_macro_f1(right, policy, baseline, resamples=2000)
    assert (found.policy, found.baseline) == (macro_f1(right, policy), macro_f1(right, baseline))
    assert found.difference > 0
    low, high = found.difference_ci
    assert 0 < low < found.difference < high
    assert found.p_value == pytest.approx(1 / 2001), "no exchange is as far apart"
    turned = compare_macro_f1(right, baseline, policy, resamples=2000)
    assert turned.difference == -found.difference
    assert turned.difference_ci == pytest.approx((-high, -low))


def test_no_difference_and_too_few_rows():
    rng = np.random.default_rng(1)
    right_N = rng.integers(0, 5, 50)
    right, policy = said(*map(str, right_N)), answers(rng, right_N, 0.6)
    same = compare_macro_f1(right, policy, policy, resamples=100)
    assert same == (same.policy, same.policy, (0.0, 0.0), 1.0)
    one = compare_macro_f1(right[:1], policy[:1], policy[:1])
    assert math.isnan(one.difference_ci[0])


def test_drawing_the_same_rows_for_both_is_what_makes_the_interval_narrow():
    """Two classifiers that make nearly the same mistakes differ by little for sure, however uncertain both are."""
    rng = np.random.default_rng(2)
    right_N = rng.integers(0, 5, 100)
    right, policy = said(*map(str, right_N)), answers(rng, right_N, 0.5)
    baseline = [*said("4"), *policy[1:]]
    low, high = compare_macro_f1(right, policy, baseline, resamples=1000).difference_ci
    assert high - low < 0.05


def test_the_interval_holds_the_truth_and_the_test_its_level():
    """100 samples of 80 rows each: the difference of the whole population lies within, no difference is found by 5%."""
    rng = np.random.default_rng(3)
    whole_N = rng.integers(0, 5, 40_000)
    whole = said(*map(str, whole_N))
    better, worse, equal = (answers(rng, whole_N, accuracy) for accuracy in (0.7, 0.5, 0.5))
    truth = macro_f1(whole, better) - macro_f1(whole, worse)
    within = false = 0
    for start in range(0, 8000, 80):
        part = slice(start, start + 80)
        low, high = compare_macro_f1(whole[part], better[part], worse[part], resamples=400).difference_ci
        within += low <= truth <= high
        false += compare_macro_f1(whole[part], equal[part], worse[part], resamples=400).p_value < 0.05
    assert within >= 90
    assert false <= 11


def test_a_class_that_a_draw_lacks_is_left_out_of_it():
    right = said(*"aaaaabbbbbc")
    low, high = compare_macro_f1(right, right, said(*"ababababab", "a"), resamples=500).difference_ci
    assert 0 < low < high <= 1
