"""Accuracy and the length baseline, and intervals of a share of pairs of which several belong to one prompt."""

import numpy as np
import pytest

from rlhf.data.records import Preference
from rlhf.evaluation.reward_model import (
    Pairs,
    clustered_interval,
    effective_pairs,
    examine,
    length_baseline,
    pair_accuracy,
)
from rlhf.evaluation.stats import wilson_interval


def test_the_length_baseline_takes_its_direction_from_training():
    longer, shorter = np.array([3.0, 1.0, -1.0]), np.array([-3.0, -1.0, 1.0])
    held_out = np.array([2.0, -5.0, 0.0])
    assert length_baseline(longer, held_out).tolist() == [1.0, 0.0, 0.5]
    assert length_baseline(shorter, held_out).tolist() == [0.0, 1.0, 0.5]


def test_accuracy_counts_pairs_and_ties_half_and_keeps_the_pairs_of_a_prompt_together():
    scores_M2 = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0], [np.nan, 1.0]])
    length_M = np.array([1.0, 2.0, 0.0, -1.0, 4.0])
    apart = Pairs([Preference(f"p{number}", "a", "b") for number in range(5)], length_M, np.ones(3))
    accuracy = pair_accuracy(scores_M2, apart)
    assert (accuracy["n"], accuracy["accuracy"], accuracy["length_baseline"]) == (5, 3 / 5, 3.5 / 5)
    assert accuracy["accuracy_ci"] == list(wilson_interval(3, 5))
    assert accuracy["length_baseline_ci"] == list(wilson_interval(3.5, 5))
    together = Pairs([Preference("p", "a", "b")] * 5, length_M, np.ones(3))
    assert pair_accuracy(scores_M2, together)["accuracy_ci"] == [0.0, 1.0], "of one prompt nothing is known"
    measures = examine(scores_M2, apart)
    assert {name: measures[name] for name in accuracy} == accuracy


def test_one_pair_a_prompt_is_wilson_exactly():
    wins_M = np.array([1.0, 0.0, 0.5, 1.0, 1.0])
    assert clustered_interval(wins_M, list("abcde")) == wilson_interval(3.5, 5)


def test_the_effective_number_by_hand():
    """Two pairs a prompt that always agree are one pair; that always differ, no fewer than there are."""
    prompts = [f"{number}" for number in range(100) for _ in range(2)]
    agree_M = np.repeat(np.arange(100) % 2, 2).astype(float)
    # p = 1/2, E_j = +-1, e_i = +-1/2: deff = (100 / 99 * 100) / (200 / 199 * 50) = 2.0101; t(199) / t(99) = 0.9938
    assert effective_pairs(agree_M, prompts) == int(200 / 2.0101 * 0.9938**2) == 98
    differ_M = np.tile([0.0, 1.0], 100)
    assert effective_pairs(differ_M, prompts) == int(200 * 0.9938**2) == 197
    low, high = clustered_interval(agree_M, prompts)
    assert (low, high) == pytest.approx(wilson_interval(49, 98))


def test_nothing_is_known_from_one_prompt_and_perfection_counts_prompts():
    assert clustered_interval(np.ones(50), ["p"] * 50) == (0.0, 1.0)
    prompts = [f"{number}" for number in range(60) for _ in range(6)]
    assert 55 <= effective_pairs(np.ones(360), prompts) <= 60


def test_each_pair_has_a_prompt():
    assert clustered_interval(np.array([]), []) == (0.0, 1.0)
    with pytest.raises(ValueError, match="0 prompts of 3 pairs"):
        effective_pairs(np.ones(3), [])


def test_the_order_of_pairs_does_not_matter():
    rng = np.random.default_rng(0)
    wins_M, prompts = rng.integers(0, 2, 300).astype(float), rng.integers(0, 40, 300).astype(str)
    order = rng.permutation(300)
    assert effective_pairs(wins_M, prompts) == effective_pairs(wins_M[order], prompts[order])


@pytest.mark.parametrize("prompts", [20, 60])
def test_a_coin_seldom_beats_chance_with_all_pairs_of_four_replies(prompts):
    """Nominal: 2.5%; taken as independent they did in 5% and more."""
    rng = np.random.default_rng(0)
    names = np.repeat(np.arange(prompts), 6).astype(str)
    one, other = np.triu_indices(4, 1)
    passed, naive, draws = 0, 0, 1500
    for _ in range(draws):
        scores = rng.normal(size=(prompts, 4))
        wins_M = (scores[:, one] > scores[:, other]).astype(float).ravel()
        passed += clustered_interval(wins_M, names)[0] > 0.5
        naive += wilson_interval(float(wins_M.sum()), len(wins_M))[0] > 0.5
    assert passed / draws <= 0.035
    assert naive / draws > 0.04
