from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlhf.evaluation.compare import compare
from rlhf.evaluation.seeds import summarise_seeds
from tests.evaluation.fabricated import make_row


def _seed(difference: float, half: float = 0.0, n: int = 100):
    row = compare([make_row(i, base=[0.0], sft=[difference]) for i in range(n)], "sft", "base", "gold")
    return {**row, "difference_ci": [difference - half, difference + half]}


def test_seeds_by_hand():
    """Prompts that all agree leave Student's interval over seeds: 2 +/- 4.303 * 1 / sqrt(3)."""
    found = summarise_seeds([_seed(1.0), _seed(2.0), _seed(3.0)])
    assert (found["n_seeds"], found["mean"], found["std"], found["min"], found["max"]) == (3, 2.0, 1.0, 1.0, 3.0)
    assert found["ci"] == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-3)
    assert (found["win_rate"], found["verdict"]) == (1.0, "no difference")


def test_seeds_that_agree_leave_the_interval_over_prompts():
    """It was on the same prompts: three runs that came out alike are no three times as much evidence."""
    found = summarise_seeds([_seed(1.0, half=0.2)] * 3)
    assert found["ci"] == pytest.approx([0.8, 1.2])
    assert (found["std"], found["verdict"]) == (0.0, "better")


def test_both_variances_add():
    over_prompts = 0.3 / scipy_stats.t.ppf(0.975, 99)
    error = np.sqrt(1 / 3 + over_prompts**2)
    low, high = summarise_seeds([_seed(1.0, 0.3), _seed(2.0, 0.3), _seed(3.0, 0.3)])["ci"]
    assert (low + high) / 2 == pytest.approx(2.0)
    assert scipy_stats.t.ppf(0.975, 3) * error < (high - low) / 2 < scipy_stats.t.ppf(0.975, 2) * error


def test_the_interval_covers_recipes_difference_95_times_in_100():
    """Seeds move the true difference, prompts are shared: both must be in the interval."""
    draw, hits, trials = np.random.default_rng(0), 0, 1000
    t = scipy_stats.t.ppf(0.975, 49)
    template = _seed(0.0, n=50)
    for _ in range(trials):
        prompts_P = draw.normal(0, 1, 50)  # of the recipe, on these prompts
        seeds = []
        for _ in range(4):
            values_P = 0.3 + prompts_P + draw.normal(0, 0.15) + draw.normal(0, 0.3, 50)
            half = t * values_P.std(ddof=1) / np.sqrt(50)
            mean = values_P.mean()
            seeds.append({**template, "mean_difference": mean, "difference_ci": [mean - half, mean + half]})
        low, high = summarise_seeds(seeds)["ci"]
        hits += low <= 0.3 <= high
    assert 0.94 <= hits / trials <= 0.985


def test_few_seeds_have_no_interval():
    two = summarise_seeds([_seed(1.0), _seed(3.0)])
    assert (two["mean"], two["ci"], two["verdict"]) == (2.0, None, "no difference")
    assert two["std"] == pytest.approx(2**0.5)
    one = summarise_seeds([_seed(1.0)])
    assert (one["mean"], one["std"], one["ci"]) == (1.0, None, None)
    empty = compare([], "sft", "base", "gold")
    none = summarise_seeds([empty])
    assert (none["n_seeds"], none["mean"], none["ci"], none["verdict"]) == (0, None, None, "no difference")
    assert summarise_seeds([_seed(1.0), empty])["n_seeds"] == 1


def test_other_comparisons_do_not_mix():
    with pytest.raises(ValueError, match="one comparison"):
        summarise_seeds([_seed(1.0), {**_seed(1.0), "judge": "reward"}])
    with pytest.raises(ValueError, match="one comparison"):
        summarise_seeds([])
