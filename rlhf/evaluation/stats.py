"""Intervals, p-values and win rates. Pure functions on NumPy arrays.

Axes: P prompts, S samples of one prompt, K pairs of completions of a prompt, N values, R resamples, U distinct values.
A value that is not finite (NaN, infinity) is "no score" throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy import stats as scipy_stats

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_BATCH_VALUES = 4_000_000  # resampled values held at once: 32 MB, whatever the number of prompts
_EXACT = 14  # values up to which all 2^N signs are tried: 16,384
_RADEMACHER = 1 / (4 * special.ndtr(-math.sqrt(2)))  # 3.18, the constant of a bound of sums with random signs
_ROUNDING = 1e-12  # share of the sum of sizes within which two sums are equal
# Penalties of the length model, where a prompt's likelihood weighs one. At 0.1, a judge that only reads length is left
# with a rate of 0.52 to 0.78, depending on how lengths lie; at 0.001 with 0.50 to 0.56; 0.5 is right. The intercept's
# only keeps the fit finite where one side wins everything.
_SLOPE_RIDGE = 1e-3
_INTERCEPT_RIDGE = 1e-7
_NEWTON_STEPS = 60


def bootstrap_ci(
    values_N: Floats,
    statistic: Callable[..., np.floating | Floats] = np.mean,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Confidence interval of a statistic by the expanded percentile bootstrap.

    The N values are drawn again with replacement, the statistic is taken of each draw, and the interval is the middle
    of these. Give one value a prompt: then the samples of a prompt stay together, and differences stay paired.
    The plain percentile interval is too narrow for few values, by about as much as a normal interval is beside
    Student's; so its level is raised to that of +/- sqrt(N / (N - 1)) t standard errors (Hesterberg 2015, "What
    Teachers Should Know about the Bootstrap", section 5.3). At N = 200 this turns 95% into 95.2%, at N = 10 into 98.3%.

    How often a 95% interval of a mean holds the truth (2,000 simulations each): 94 to 96% at N = 50 and 200 for normal,
    mildly skewed (gamma, skewness 1) and win-or-loss values. Below that for heavy skew, where the tail is not among
    the values seen: exponential 93% at N = 50 and 90% at N = 10, log-normal 90% and 85%; for N = 6 (normal 93%); and
    for shares near 0 or 1 of few values (0.9 at N = 20: 88%), where `share_interval` is right.

    Args:
        values_N: The observations; those that are not finite are left out.
        statistic: Vectorised: takes the array and `axis`.
        level: Confidence, between 0 and 1.
        resamples: Number of draws.
        seed: Of the draws; the same values and seed give the same interval.

    Returns:
        Low and high end, in the units of the statistic; (nan, nan) where fewer than two values are left.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    values_N = values_N[np.isfinite(values_N)]
    count = len(values_N)
    if count < 2:
        return math.nan, math.nan
    result = scipy_stats.bootstrap(
        (values_N,),
        statistic,
        confidence_level=expanded_level(level, count),
        n_resamples=resamples,
        batch=max(1, _BATCH_VALUES // count),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def expanded_level(level: float, count: int) -> float:
    """The level at which a percentile interval of `count` values is as wide as Student's at `level`."""
    spread = scipy_stats.t.ppf((1 + level) / 2, count - 1) * math.sqrt(count / (count - 1))
    return float(1 - 2 * scipy_stats.norm.sf(spread))


def paired_p_value(difference_N: Floats, resamples: int = 20_000, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference of pairs by the sign-flip permutation test (Fisher 1935).

    Were there no difference, each d_i could as well be -d_i. p is the share of sign patterns with |sum s_i d_i| >=
    |sum d_i|: of all 2^N of them up to N = 14, else (1 + hits) / (1 + R) of R random ones, which is never zero
    (Phipson & Smyth 2010). R bounds that from below, and with it the number of comparisons that Holm's correction lets
    show anything; where the share is surely smaller still, p is its bound P(|sum s_i d_i| >= t) <= 2 c P(Z >= t / |d|),
    Z standard normal, c = 1 / (4 P(Z >= sqrt 2)) = 3.18 (Bentkus & Dzindzalieta 2015, "A Tight Gaussian Bound for
    Weighted Sums of Rademacher Random Variables"), which lies above the share whatever the differences are. The same
    number as `scipy.stats.permutation_test` with `permutation_type="samples"`, which permutes each pair by itself and
    takes thirty times as long as the matrix product here for half the patterns.

    Args:
        difference_N: One difference a prompt; those that are not finite are left out.
        resamples: Random sign patterns R, used above N = 14.
        seed: Of the patterns.

    Returns:
        p in (0, 1]; NaN where no value is left.
    """
    difference_N = np.asarray(difference_N, dtype=np.float64)
    difference_N = difference_N[np.isfinite(difference_N)]
    count = len(difference_N)
    if not count:
        return math.nan
    total = difference_N.sum()
    bound = abs(total) - _ROUNDING * np.abs(difference_N).sum()
    exact = count <= _EXACT
    patterns = 2**count if exact else resamples
    rng = np.random.default_rng(seed)
    batch, hits = max(1, _BATCH_VALUES // count), 0
    for start in range(0, patterns, batch):
        size = min(batch, patterns - start)
        flips_RN: NDArray[Any]
        if exact:
            flips_RN = np.arange(start, start + size)[:, None] >> np.arange(count) & 1
        else:
            flips_RN = np.unpackbits(rng.integers(0, 256, (size, -(-count // 8)), np.uint8), axis=1, count=count)
        sums_R = total - 2 * (flips_RN.astype(np.float64) @ difference_N)
        hits += int((np.abs(sums_R) >= bound).sum())
    if exact:
        return hits / patterns
    size = float(np.sqrt(np.square(difference_N).sum()))
    least = 2 * _RADEMACHER * special.ndtr(-bound / size) if size else 1.0
    sampled = (1 + hits) / (1 + patterns)
    return float(least) if least < 1 / (1 + patterns) else sampled


def holm(p_N: Floats) -> Floats:
    """p-values adjusted for how many there are, by Holm's step-down method (Holm 1979).

    Of M p-values in rising order, the adjusted i-th is the largest of min(1, (M - j + 1) p_j) over j <= i. Calling
    what is then below a level a difference makes one false call or more with at most that probability, however the
    tests depend on each other.

    Args:
        p_N: p-values; one that is NaN was no test: it is not counted and stays NaN.

    Returns:
        Array of N adjusted p-values, each at least its own.
    """
    p_N = np.asarray(p_N, dtype=np.float64)
    adjusted_N = np.full(len(p_N), np.nan)
    order_M = np.argsort(p_N)[: np.isfinite(p_N).sum()]  # NaN is sorted last
    factors_M = np.arange(len(order_M), 0, -1)
    adjusted_N[order_M] = np.minimum(1.0, np.maximum.accumulate(factors_M * p_N[order_M]))
    return adjusted_N


def finite_mean(values_N: Floats) -> float | None:
    """Mean of the values that are finite; None where there are none."""
    values_N = values_N[np.isfinite(values_N)]
    return float(values_N.mean()) if len(values_N) else None


def mean_interval(values_N: Floats) -> list[float] | None:
    """`bootstrap_ci` of the mean, as it stands in a report; None where there are too few values."""
    low, high = bootstrap_ci(values_N)
    return None if math.isnan(low) else [low, high]


def share_interval(shares_N: Floats, level: float = 0.95) -> list[float] | None:
    """Interval of the mean of values between 0 and 1, right at the edges too: Wilson's, with an effective number.

    Of ten wins in ten draws with replacement are ten wins again, and a bootstrap would call that certain. Wilson's
    interval holds for zeros and ones. Values between, such as the share of a prompt's pairs that were won, vary less:
    with mean m and variance v, N of them count as N / d, d = (N v / (m (1 - m)) + z²) / (N + z²), the design effect
    (Kish 1965, "Survey Sampling", section 8.2) drawn towards 1 as if z² further values were zeros and ones, so that a
    few which happen to be equal are not taken for certain. Of zeros and ones this is Wilson's interval exactly.

    Args:
        shares_N: One value a prompt; those that are not finite are left out.
        level: Confidence, between 0 and 1.

    Returns:
        Low and high end, as they stand in a report; None where fewer than two values are left.
    """
    shares_N = shares_N[np.isfinite(shares_N)]
    count = len(shares_N)
    if count < 2:
        return None
    weight, mean = float(special.ndtri((1 + level) / 2)) ** 2, float(shares_N.mean())
    design = float(shares_N.var()) / (mean * (1 - mean)) if 0 < mean < 1 else 1.0
    effective = count * (count + weight) / (count * design + weight)
    return list(wilson_interval(mean * effective, effective, level))


def wilson_interval(successes: float, n: float, level: float = 0.95) -> Interval:
    """Confidence interval of a share: Wilson's score interval (Wilson 1927), without continuity correction.

    With share p, z of the normal distribution: (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n). Written out
    because SciPy's takes whole successes only, and a tie is half a success.

    Args:
        successes: Number of successes, at most `n`; a tie may count half.
        n: Number of independent trials.
        level: Confidence, between 0 and 1.

    Returns:
        Low and high end, within 0 and 1; (0, 1) when there was no trial.

    Raises:
        ValueError: `successes` is not between 0 and `n`.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials")
    if n == 0:
        return 0.0, 1.0
    z = float(scipy_stats.norm.ppf((1 + level) / 2))
    middle = (successes + z * z / 2) / (n + z * z)
    half = z * math.sqrt(successes * (n - successes) / n + z * z / 4) / (n + z * z)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_per_prompt(values_PS: Floats) -> Floats:
    """Mean over the samples of each prompt, of those that have a value; NaN for a prompt without any.

    Args:
        values_PS: One row a prompt.

    Returns:
        Array of P means.
    """
    valid_PS = np.isfinite(values_PS)
    count_P = valid_PS.sum(axis=1)
    total_P = np.where(valid_PS, values_PS, 0.0).sum(axis=1)
    return np.divide(total_P, count_P, out=np.full(len(count_P), np.nan), where=count_P > 0)


def pair_wins(a_PS: Floats, b_PS: Floats) -> Floats:
    """Who scores higher in each pair (a sample of A, a sample of B, same prompt): A 1, B 0, a tie 0.5.

    All S x S' pairs of a prompt are compared, since which sample met which is chance.

    Args:
        a_PS: Scores of policy A, one row a prompt.
        b_PS: Scores of policy B for the same prompts; the number of samples may differ.

    Returns:
        Array (P, S * S'), all pairs of A's first sample first; NaN where one side has no score.
    """
    a_PS, b_PS = (np.where(np.isfinite(scores), scores, np.nan) for scores in (a_PS, b_PS))
    return wins(pair_differences(a_PS, b_PS))


def wins(difference: Floats) -> Floats:
    """1 where a difference is above zero, 0 where it is below, 0.5 at zero (a tie); NaN where it is NaN."""
    return (np.sign(difference) + 1) / 2


def pair_differences(a_PS: Floats, b_PS: Floats) -> Floats:
    """Differences a - b of all pairs of a prompt's samples, in the order of `pair_wins`: array (P, S * S')."""
    return (a_PS[:, :, None] - b_PS[:, None, :]).reshape(len(a_PS), a_PS.shape[1] * b_PS.shape[1])


def win_rate(a_PS: Floats, b_PS: Floats) -> Floats:
    """Share of a prompt's pairs (see `pair_wins`) in which A scores higher; a tie counts half.

    Args:
        a_PS: Scores of policy A, one row a prompt.
        b_PS: Scores of policy B for the same prompts; the number of samples may differ.

    Returns:
        Array of P shares between 0 and 1; NaN for a prompt without a scored pair.
    """
    return mean_per_prompt(pair_wins(a_PS, b_PS))


def length_controlled_win_rate(
    wins_PK: Floats, longer_PK: Floats, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, Interval]:
    """Win rate if the completions of both sides were equally long.

    The logistic model sigmoid(a + b x), with x = tanh(longer / root mean square of longer), is fitted to the wins, and
    read at x = 0: sigmoid(a). Every prompt has the same weight. After Dubois et al. 2024, "Length-Controlled
    AlpacaEval", with these deviations: no term for how hard an instruction is; the differences are scaled by their
    root mean square, not their standard deviation, which is zero where one side is always longer by as much; instead
    of a cross-validated penalty b has a very weak one, which decides where length separates wins from losses, or never
    varies (then nothing is put down to it). Like any such model, it takes the part of quality that goes with length
    for length.

    The interval is the percentile interval of refits to prompts drawn with replacement, at the level of `bootstrap_ci`.

    Args:
        wins_PK: 1 a win, 0 a loss, 0.5 a tie, or a share between; NaN for a pair without a judgement.
        longer_PK: Length of A's completion minus that of B's, any unit; NaN where it is unknown.
        level: Confidence, between 0 and 1.
        resamples: Number of refits.
        seed: Of the draws.

    Returns:
        The rate and its interval; NaN where no pair is known, (nan, nan) where fewer than two prompts have one.
    """
    total_PU, won_PU, longer_U = _by_length(wins_PK, longer_PK)
    count = len(total_PU)
    if not count:
        return math.nan, (math.nan, math.nan)
    scale = math.sqrt((total_PU.sum(axis=0) * longer_U**2).sum() / count)
    x_U = np.tanh(longer_U / (scale or 1.0))
    fit_12 = _logistic_fits(total_PU.sum(axis=0)[None], won_PU.sum(axis=0)[None], x_U, np.zeros((1, 2)))
    rate = float(special.expit(fit_12[0, 0]))
    if count < 2:
        return rate, (math.nan, math.nan)
    drawn_RP = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)
    fits_R2 = _logistic_fits(drawn_RP @ total_PU, drawn_RP @ won_PU, x_U, np.repeat(fit_12, resamples, axis=0))
    tail = (1 - expanded_level(level, count)) / 2
    low, high = np.quantile(special.expit(fits_R2[:, 0]), [tail, 1 - tail])
    return rate, (float(low), float(high))


def _by_length(wins_PK: Floats, longer_PK: Floats) -> tuple[Floats, Floats, Floats]:
    """Weight of the pairs at each difference in length, that of the wins among them, and the differences.

    Lengths are whole numbers: pairs of a prompt with the same difference are one term of the likelihood, so that a fit
    costs by the number of distinct differences and not of pairs. The weights of a prompt sum to one; prompts without
    a known pair are left out.
    """
    known_PK = np.isfinite(wins_PK) & np.isfinite(longer_PK)
    kept_P = known_PK.any(axis=1)
    wins_PK, longer_PK, known_PK = wins_PK[kept_P], longer_PK[kept_P], known_PK[kept_P]
    weight_PK = known_PK / known_PK.sum(axis=1, keepdims=True)
    longer_U, place_N = np.unique(longer_PK[known_PK], return_inverse=True)
    cell_N = np.nonzero(known_PK)[0] * len(longer_U) + place_N
    size = len(known_PK) * len(longer_U)
    total_PU, won_PU = (
        np.bincount(cell_N, values_PK[known_PK], size).reshape(len(known_PK), len(longer_U)).astype(np.float64)
        for values_PK in (weight_PK, weight_PK * np.where(known_PK, wins_PK, 0.0))
    )
    return total_PU, won_PU, longer_U


def _logistic_fits(total_RU: Floats, won_RU: Floats, x_U: Floats, start_R2: Floats) -> Floats:
    """Intercept and slope of R logistic regressions with a ridge, by Newton's method.

    Args:
        total_RU: Weight of the pairs at each x.
        won_RU: Weight of those that are won.
        x_U: The regressor.
        start_R2: Where the search starts.
    """
    fits_R2 = start_R2.copy()
    left_A = np.arange(len(fits_R2))  # fits that still move: a few take many times the steps of the others
    for _ in range(_NEWTON_STEPS):
        a_A, b_A = fits_R2[left_A].T
        share_AU = special.expit(a_A[:, None] + b_A[:, None] * x_U)
        residual_AU = won_RU[left_A] - total_RU[left_A] * share_AU
        curvature_AU = total_RU[left_A] * share_AU * (1 - share_AU)
        slope_a, slope_b = residual_AU.sum(axis=1) - _INTERCEPT_RIDGE * a_A, residual_AU @ x_U - _SLOPE_RIDGE * b_A
        h_aa = curvature_AU.sum(axis=1) + _INTERCEPT_RIDGE
        h_ab, h_bb = curvature_AU @ x_U, curvature_AU @ x_U**2 + _SLOPE_RIDGE
        step_A2 = np.stack([h_bb * slope_a - h_ab * slope_b, h_aa * slope_b - h_ab * slope_a], axis=1)
        step_A2 /= (h_aa * h_bb - h_ab**2)[:, None]
        length_A = np.abs(step_A2).max(axis=1)
        # Where all is nearly decided the curvature is nearly nothing, and a full step would leap over the optimum.
        fits_R2[left_A] += step_A2 / np.maximum(1.0, length_A / 2)[:, None]
        left_A = left_A[length_A > 1e-3]  # what is left after such a step is its square
        if not len(left_A):
            break
    return fits_R2
