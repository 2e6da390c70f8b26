from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlhf.evaluation.stats import bootstrap_ci, mean_per_prompt, wilson_interval, win_rate

NAN = math.nan


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_known_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_is_scipys_and_takes_halves():
    for k in range(21):
        theirs = scipy_stats.binomtest(k, 20).proportion_ci(0.9, method="wilson")
        assert wilson_interval(k, 20, level=0.9) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    low, high = wilson_interval(7.5, 20)
    assert wilson_interval(7, 20)[0] < low < wilson_interval(8, 20)[0]
    assert wilson_interval(7, 20)[1] < high < wilson_interval(8, 20)[1]


def test_wilson_without_trials_knows_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for successes, n in ((3, 2), (-1, 5), (1, 0)):
        with pytest.raises(ValueError, match="trials"):
            wilson_interval(successes, n)


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    error = values.std(ddof=1) / math.sqrt(400)
    low, high = bootstrap_ci(values)
    assert low == pytest.approx(values.mean() - 1.97 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.97 * error, abs=0.1 * error)


@pytest.mark.parametrize("n", [8, 40])
def test_bootstrap_covers_the_truth_about_95_times_in_100(n):
    draw = np.random.default_rng(1)
    hits = 0
    for trial in range(500):
        low, high = bootstrap_ci(draw.normal(0.3, 1.0, size=n), resamples=600, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.93 <= hits / 500 <= 0.975  # the plain percentile interval covers 0.88 at n = 8


def test_bootstrap_edge_cases():
    assert all(map(math.isnan, bootstrap_ci(np.array([]))))
    assert all(map(math.isnan, bootstrap_ci(np.array([1.0]))))
    assert all(map(math.isnan, bootstrap_ci(np.array([1.0, NAN, math.inf]))))
    assert bootstrap_ci(np.full(9, 0.25)) == (0.25, 0.25)
    low, high = bootstrap_ci(np.array([1.0, 2.0]))
    assert (low, high) == (1.0, 2.0)


def test_bootstrap_repeats_itself_and_takes_a_statistic():
    values = np.random.default_rng(2).exponential(size=60)
    assert bootstrap_ci(values, seed=5) == bootstrap_ci(values, seed=5)
    assert bootstrap_ci(values, seed=5) != bootstrap_ci(values, seed=6)
    low, high = bootstrap_ci(values, np.median)
    assert low <= np.median(values) <= high < np.mean(values) + 1
    wide, narrow = bootstrap_ci(values, level=0.99), bootstrap_ci(values, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    with_gaps = np.concatenate([values, [NAN, NAN]])
    assert bootstrap_ci(with_gaps) == bootstrap_ci(values)


def test_bootstrap_holds_memory_down_without_changing_the_result(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    whole = bootstrap_ci(values, resamples=500)
    monkeypatch.setattr("rlhf.evaluation.stats._BATCH_VALUES", 1000)
    assert bootstrap_ci(values, resamples=500) == pytest.approx(whole, abs=1e-12)


def test_win_rate_by_hand():
    a = np.array([[3.0, 1.0], [2.0, 2.0], [0.0, NAN], [NAN, NAN]])
    b = np.array([[2.0, 2.0], [2.0, 2.0], [1.0, -1.0], [1.0, 1.0]])
    # 3 beats both, 1 neither; four ties; 0 loses to 1 and beats -1; nothing scored
    np.testing.assert_array_equal(win_rate(a, b), [0.5, 0.5, 0.5, NAN])
    np.testing.assert_array_equal(win_rate(np.array([[3.0, 2.0, 1.0]]), np.array([[2.0]])), [0.5])
    np.testing.assert_array_equal(win_rate(np.array([[2.0, 2.0]]), np.array([[2.0, 1.0]])), [0.75])


def test_win_rates_of_two_sides_sum_to_one_and_ignore_scale():
    draw = np.random.default_rng(4)
    a, b = draw.integers(0, 4, size=(30, 3)).astype(float), draw.integers(0, 4, size=(30, 5)).astype(float)
    np.testing.assert_allclose(win_rate(a, b) + win_rate(b, a), 1.0)
    np.testing.assert_array_equal(win_rate(a, b), win_rate(10 * a - 7, 10 * b - 7))


def test_an_infinite_score_is_no_score():
    np.testing.assert_array_equal(win_rate(np.array([[math.inf, 1.0]]), np.array([[2.0]])), [0.0])


def test_mean_per_prompt_leaves_gaps_out():
    np.testing.assert_array_equal(mean_per_prompt(np.array([[1.0, 3.0], [5.0, NAN], [NAN, NAN]])), [2.0, 5.0, NAN])
    assert mean_per_prompt(np.empty((2, 0))).tolist() == pytest.approx([NAN, NAN], nan_ok=True)
