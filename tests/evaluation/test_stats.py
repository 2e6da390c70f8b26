from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from rlhf.evaluation.stats import (
    bootstrap_ci,
    holm,
    length_controlled_win_rate,
    mean_per_prompt,
    pair_differences,
    pair_wins,
    paired_p_value,
    share_interval,
    wilson_interval,
    win_rate,
)

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


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_is_that_of_statsmodels_for_halves_too(level):
    for successes, n in ((0, 5), (0.5, 1), (13.5, 200), (150, 200), (200, 200)):
        theirs = proportion_confint(successes, n, 1 - level, method="wilson")
        assert wilson_interval(successes, n, level) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("n", [50, 200])
def test_wilson_covers_the_truth_about_95_times_in_100(n):
    """Exact: the chances of all counts whose interval holds the true share are summed."""
    counts = np.arange(n + 1)
    low_N, high_N = np.array([wilson_interval(int(k), n) for k in counts]).T
    coverage = [
        scipy_stats.binom.pmf(counts, n, share)[(low_N <= share) & (share <= high_N)].sum()
        for share in np.linspace(0.1, 0.9, 161)
    ]
    assert 0.93 <= np.mean(coverage) <= 0.97
    assert min(coverage) > 0.915  # at single shares it jumps about, as counts are whole


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


_POPULATIONS = {
    "normal": (lambda draw, n: draw.normal(0.3, 1.0, n), 0.3),
    "uniform": (lambda draw, n: draw.random(n), 0.5),
    "win or loss": (lambda draw, n: (draw.random(n) < 0.6).astype(float), 0.6),
    "skewed": (lambda draw, n: draw.gamma(4.0, 1.0, n), 4.0),  # skewness 1
    "exponential": (lambda draw, n: draw.exponential(1.0, n), 1.0),  # skewness 2
}


def _coverage(population: str, n: int, trials: int) -> float:
    sample, truth = _POPULATIONS[population]
    draw = np.random.default_rng(7)
    hits = 0
    for trial in range(trials):
        low, high = bootstrap_ci(sample(draw, n), resamples=500, seed=trial)
        hits += low <= truth <= high
    return hits / trials


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("population", ["normal", "uniform", "win or loss", "skewed"])
def test_coverage_at_the_sizes_of_practice(population, n):
    assert 0.93 <= _coverage(population, n, trials=1000) <= 0.97


def test_coverage_falls_short_where_the_docstring_says():
    assert 0.90 <= _coverage("exponential", 50, trials=1000) <= 0.955
    assert 0.84 <= _coverage("exponential", 10, trials=1000) <= 0.93


@pytest.mark.parametrize("n", [20, 200])
def test_bootstrap_of_a_mean_is_students_interval(n):
    values = np.random.default_rng(8).normal(1.0, 2.0, n)
    expected = scipy_stats.t.interval(0.95, n - 1, values.mean(), scipy_stats.sem(values))
    assert bootstrap_ci(values, resamples=100_000) == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))


def test_more_samples_of_a_prompt_are_no_more_prompts():
    """Writing every sample down twice adds no evidence; values taken one by one would narrow by sqrt(2)."""
    scores_PS = np.random.default_rng(9).normal(size=(30, 1)) + np.random.default_rng(10).normal(0, 0.2, (30, 3))
    once = bootstrap_ci(mean_per_prompt(scores_PS))
    assert bootstrap_ci(mean_per_prompt(np.tile(scores_PS, 2))) == pytest.approx(once)
    flat = bootstrap_ci(np.tile(scores_PS, 2).ravel())
    assert flat[1] - flat[0] < 0.6 * (once[1] - once[0])


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


def test_p_value_by_hand():
    # Of the 8 sign patterns of 1, 2, 3 only +++ and --- sum to 6
    assert paired_p_value(np.array([1.0, 2.0, 3.0])) == 0.25
    # |sum| >= 4: 6 and 4 and their mirror images
    assert paired_p_value(np.array([-1.0, 2.0, 3.0])) == 0.5
    assert paired_p_value(np.array([1.0])) == 1.0
    assert paired_p_value(np.zeros(30)) == 1.0
    assert paired_p_value(np.ones(6)) == 2 / 64
    assert math.isnan(paired_p_value(np.array([NAN, math.inf])))
    assert paired_p_value(np.array([1.0, NAN, 2.0, 3.0])) == 0.25


@pytest.mark.parametrize("n", [5, 10])
def test_exact_p_value_is_scipys(n):
    for seed in range(4):
        values = np.random.default_rng(seed).normal(0.5, 1.0, n).round(1)  # rounded: sums tie
        theirs = scipy_stats.permutation_test(
            (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=2**n
        )
        assert paired_p_value(values) == pytest.approx(theirs.pvalue)


def test_random_p_value_is_near_the_t_tests_and_never_zero():
    for shift in (0.0, 0.1, 0.2, 0.3):
        values = np.random.default_rng(11).normal(shift, 1.0, 150)
        expected = scipy_stats.ttest_1samp(values, 0.0).pvalue
        assert paired_p_value(values) == pytest.approx(expected, abs=0.01)
        assert paired_p_value(-values) == paired_p_value(values)
    assert 0 < paired_p_value(np.ones(200)) < 1 / 20_001
    assert paired_p_value(values, seed=1) == paired_p_value(values, seed=1) != paired_p_value(values, seed=2)


def test_random_p_value_meets_the_exact_one(monkeypatch):
    values = np.random.default_rng(12).exponential(1.0, 13) - 0.5
    exact = paired_p_value(values)
    monkeypatch.setattr("rlhf.evaluation.stats._EXACT", 0)
    assert paired_p_value(values) == pytest.approx(exact, abs=0.01)
    monkeypatch.setattr("rlhf.evaluation.stats._BATCH_VALUES", 13 * 1024)
    assert paired_p_value(values) == pytest.approx(exact, abs=0.01)


def test_p_values_are_uniform_where_there_is_no_difference():
    draw = np.random.default_rng(13)
    p_values = [paired_p_value(draw.laplace(size=12)) for _ in range(400)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.025)
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.06)


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3 (then 0.03 * 2 = 0.06 as well), 0.5
    np.testing.assert_allclose(holm(np.array([0.03, 0.01, 0.5, 0.02])), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(holm(np.array([0.2])), [0.2])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])
    assert len(holm(np.array([]))) == 0


def test_holm_is_that_of_statsmodels():
    draw = np.random.default_rng(14)
    for count in (2, 7, 40):
        p_N = draw.random(count).round(2) ** 3
        np.testing.assert_allclose(holm(p_N), multipletests(p_N, method="holm")[1], atol=1e-15)


def test_holm_does_not_count_what_was_no_test():
    np.testing.assert_allclose(holm(np.array([0.01, NAN, 0.02])), [0.02, NAN, 0.02])
    assert np.isnan(holm(np.array([NAN]))).all()


def test_holm_keeps_false_calls_down():
    """Twenty tests without a difference: one or more at 0.05 in about 5 of 100 families, not in 64."""
    p_FN = np.random.default_rng(15).random((1000, 20))
    assert np.mean([(holm(p_N) < 0.05).any() for p_N in p_FN]) == pytest.approx(0.05, abs=0.02)


def _lengths(prompts: int = 200, samples: int = 3, seed: int = 0, growth: float = 0.0):
    draw = np.random.default_rng(seed)
    ours = np.round(draw.normal(40 + growth, 10, (prompts, samples)))
    return pair_differences(ours, np.round(draw.normal(40, 10, (prompts, samples))))


def test_length_control_changes_nothing_where_length_does_not_matter():
    longer_PK = _lengths(growth=8)
    wins_PK = (np.random.default_rng(1).random(longer_PK.shape) < 0.7).astype(float)
    rate, (low, high) = length_controlled_win_rate(wins_PK, longer_PK)
    assert rate == pytest.approx(wins_PK.mean(), abs=0.02)
    assert low < 0.7 < high
    same, interval = length_controlled_win_rate(wins_PK, np.full_like(longer_PK, 12.0))  # nothing to tell it by
    assert same == pytest.approx(wins_PK.mean(), abs=1e-4)
    assert interval == pytest.approx(bootstrap_ci(wins_PK.mean(axis=1)), abs=0.01)
    assert length_controlled_win_rate(wins_PK, np.zeros_like(longer_PK))[0] == pytest.approx(wins_PK.mean(), abs=1e-4)


def test_length_control_leaves_a_half_of_wins_by_length():
    longer_PK = _lengths(growth=12)
    wins_PK = (np.sign(longer_PK) + 1) / 2
    assert wins_PK.mean() > 0.75
    rate, (low, high) = length_controlled_win_rate(wins_PK, longer_PK)
    assert rate == pytest.approx(0.5, abs=0.06)
    assert low < 0.5 < high


def test_length_control_keeps_what_is_not_length():
    """Wins are drawn from the model itself: at equal length 65 of 100, and long replies are liked."""
    longer_PK = _lengths(prompts=400, growth=10, seed=3)
    x_PK = np.tanh(longer_PK / np.sqrt((longer_PK**2).mean()))
    chance_PK = 1 / (1 + np.exp(-(math.log(0.65 / 0.35) + 2 * x_PK)))
    wins_PK = (np.random.default_rng(4).random(chance_PK.shape) < chance_PK).astype(float)
    rate, (low, high) = length_controlled_win_rate(wins_PK, longer_PK)
    assert wins_PK.mean() > 0.73
    assert rate == pytest.approx(0.65, abs=0.03)
    assert low < 0.65 < high < wins_PK.mean()
    assert high - low < 0.1


def test_length_control_of_two_sides_sums_to_one():
    longer_PK = _lengths(prompts=60, growth=6, seed=5)
    wins_PK = np.random.default_rng(6).choice([0.0, 0.5, 1.0], longer_PK.shape, p=[0.2, 0.2, 0.6])
    wins_PK[0, 0] = NAN
    rate, (low, high) = length_controlled_win_rate(wins_PK, longer_PK)
    reverse, (reverse_low, reverse_high) = length_controlled_win_rate(1 - wins_PK, -longer_PK)
    assert (rate, low, high) == pytest.approx((1 - reverse, 1 - reverse_high, 1 - reverse_low), abs=1e-6)
    metres = length_controlled_win_rate(wins_PK, 7 * longer_PK)
    assert metres[0] == pytest.approx(rate, abs=1e-6)  # any unit


def test_length_control_counts_prompts_and_not_pairs():
    """One prompt with many pairs weighs no more than one with a few, and pairs that are unknown nothing."""
    wins_PK = np.array([[1.0] * 8, [0.0] + [NAN] * 7, [0.0] + [NAN] * 7, [1.0] * 8])
    rate, _ = length_controlled_win_rate(wins_PK, np.zeros((4, 8)))
    assert rate == pytest.approx(0.5, abs=1e-6)


def test_length_control_at_the_edges():
    longer_PK = _lengths(prompts=10)
    rate, (low, high) = length_controlled_win_rate(np.ones_like(longer_PK), longer_PK)
    assert rate == pytest.approx(1.0, abs=1e-3)
    assert 0.99 < low <= high <= 1.0
    rate, interval = length_controlled_win_rate(np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]]))
    assert rate == pytest.approx(0.5)
    assert all(map(math.isnan, interval))  # one prompt
    nothing, interval = length_controlled_win_rate(np.full((3, 2), NAN), np.ones((3, 2)))
    assert math.isnan(nothing)
    assert all(map(math.isnan, interval))
    assert math.isnan(length_controlled_win_rate(np.empty((0, 0)), np.empty((0, 0)))[0])


def test_length_control_covers_the_truth_about_95_times_in_100():
    hits = 0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        longer_PK = np.round(draw.normal(5, 12, (60, 4)))
        tilt_P = draw.normal(0, 0.5, (60, 1))  # prompts differ
        chance_PK = 1 / (1 + np.exp(-(tilt_P + 1.5 * np.tanh(longer_PK / 13))))
        wins_PK = (draw.random(chance_PK.shape) < chance_PK).astype(float)
        _, (low, high) = length_controlled_win_rate(wins_PK, longer_PK, resamples=400)
        hits += low <= 0.5 <= high
    assert 0.92 <= hits / 300 <= 0.98


def test_pairs_are_in_the_same_order():
    a, b = np.array([[3.0, 1.0]]), np.array([[2.0, 1.0, NAN]])
    np.testing.assert_array_equal(pair_wins(a, b), [[1.0, 1.0, NAN, 0.0, 0.5, NAN]])
    np.testing.assert_array_equal(pair_differences(a, b), [[1.0, 2.0, NAN, -1.0, 0.0, NAN]])


def test_share_interval_of_wins_and_losses_is_wilsons():
    for wins, n in ((0, 8), (3, 8), (10, 10), (60, 100)):
        values = np.array([1.0] * wins + [0.0] * (n - wins))
        assert share_interval(values) == pytest.approx(list(wilson_interval(wins, n)), abs=1e-12)
    assert share_interval(np.array([1.0])) is None
    assert share_interval(np.array([1.0, NAN])) is None


def test_share_interval_of_values_between_is_that_of_a_mean():
    shares = np.random.default_rng(3).beta(6, 4, 2000)
    error = shares.std() / math.sqrt(2000)
    assert share_interval(shares) == pytest.approx(
        [shares.mean() - 1.96 * error, shares.mean() + 1.96 * error], abs=1e-3
    )
    ties = share_interval(np.full(10, 0.5))
    assert ties[0] == pytest.approx(1 - ties[1])
    assert 0.3 < ties[0] < 0.4, "that ten prompts tie does not show that all would"


@pytest.mark.parametrize("n", [6, 10, 20, 50])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_share_interval_covers_the_truth_95_times_in_100(n, share):
    """Of single pairs, all counts summed, Wilson's at its worst; of four pairs a prompt that go together about 95%.

    A bootstrap of six pairs holds a share of 0.98 in 11 cases of 100.
    """
    counts = np.arange(n + 1)
    ends = np.array([share_interval(np.repeat([1.0, 0.0], [k, n - k])) for k in counts])
    inside = (ends[:, 0] <= share) & (share <= ends[:, 1])
    assert scipy_stats.binom.pmf(counts, n, share)[inside].sum() > 0.88
    draw, hits = np.random.default_rng(5), 0
    for _ in range(2000):
        prompts_P = draw.beta(4 * share, 4 * (1 - share), n)
        low, high = share_interval(draw.binomial(4, prompts_P) / 4)
        hits += low <= share <= high
    assert hits / 2000 > 0.92


def test_p_values_go_on_where_random_patterns_end():
    """200 differences of one sign: 2 / 2^200 is the share; Holm's correction for 5,000 leaves it a difference."""
    few, many = paired_p_value(np.ones(20)), paired_p_value(np.ones(200))
    assert 2 * 0.5**20 <= few < 1 / 20_001
    assert 2 * 0.5**200 <= many < few
    assert holm(np.array([many, *[0.5] * 4_999]))[0] < 0.05
    skewed = np.random.default_rng(0).exponential(size=16)
    flips = np.arange(2**16)[:, None] >> np.arange(16) & 1
    exact = (np.abs((1 - 2 * flips) @ skewed) >= skewed.sum() - 1e-9).mean()
    assert exact == 2 / 2**16 < paired_p_value(skewed) <= 2 / 20_001
    assert paired_p_value(np.zeros(20)) == 1.0
