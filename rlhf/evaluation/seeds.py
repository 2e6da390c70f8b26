"""One comparison, several training seeds -> what holds for the recipe and not for one run of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from scipy import stats as scipy_stats

from rlhf.evaluation.compare import Comparison, Verdict, verdict_of

MIN_SEEDS = 3
"""Fewest seeds with an interval: the spread of two is hardly known (Student's t of 12.7 at 95%)."""


class SeedSummary(TypedDict):
    """One policy against one baseline, by one judge, over the seeds it was trained with."""

    policy: str
    baseline: str
    judge: str
    n_seeds: int
    """Seeds with a mean difference."""
    mean: float | None
    """Mean over seeds of the mean difference."""
    std: float | None
    """Standard deviation between seeds, n - 1 in the denominator; null for one seed."""
    min: float | None
    max: float | None
    ci: list[float] | None
    """95% interval of the mean over seeds and prompts; null for fewer than `MIN_SEEDS` seeds."""
    win_rate: float | None
    """Mean over seeds."""
    verdict: Verdict
    """From the interval, as in `Comparison`; not corrected for other comparisons."""


def summarise_seeds(comparisons: Sequence[Comparison]) -> SeedSummary:
    """What several seeds of one recipe show together.

    The seeds are judged on the same prompts, so what prompts bring in does not show between seeds. The interval adds
    both: mean +/- t sqrt(s²/k + e²), with s the standard deviation between k seeds, e² the mean over seeds of the
    squared standard error over prompts, and t at the degrees of freedom of the sum (Satterthwaite 1946). What is
    chance in both, such as which replies were sampled, is counted twice: the interval is rather too wide.

    Args:
        comparisons: The same policy, baseline and judge, one of each seed.

    Raises:
        ValueError: No comparison, or not all of the same.
    """
    kinds = {(row["policy"], row["baseline"], row["judge"]) for row in comparisons}
    if len(kinds) != 1:
        raise ValueError(f"expected one comparison under several seeds, got {sorted(kinds)}")
    policy, baseline, judge = kinds.pop()
    known = [row for row in comparisons if row["mean_difference"] is not None]
    means = np.array([row["mean_difference"] for row in known], dtype=np.float64)
    rates = [row["win_rate"] for row in known if row["win_rate"] is not None]
    interval = _interval(means, known)
    return SeedSummary(
        policy=policy,
        baseline=baseline,
        judge=judge,
        n_seeds=len(known),
        mean=float(means.mean()) if known else None,
        std=float(means.std(ddof=1)) if len(known) > 1 else None,
        min=float(means.min()) if known else None,
        max=float(means.max()) if known else None,
        ci=interval,
        win_rate=float(np.mean(rates)) if rates else None,
        verdict=verdict_of(interval, min((row["n"] for row in known), default=0)),
    )


def _interval(means: np.ndarray[Any, np.dtype[np.float64]], known: Sequence[Comparison]) -> list[float] | None:
    """Student's interval of a mean over seeds and prompts."""
    if len(known) < MIN_SEEDS or any(row["difference_ci"] is None for row in known):
        return None
    prompts = min(row["n"] for row in known)
    between = means.var(ddof=1) / len(means)
    quantile = scipy_stats.t.ppf(0.975, prompts - 1)
    widths = [row["difference_ci"][1] - row["difference_ci"][0] for row in known if row["difference_ci"]]
    over_prompts = float(np.mean([(width / (2 * quantile)) ** 2 for width in widths]))
    error = between + over_prompts
    if error == 0:
        return [float(means.mean())] * 2
    freedom = error**2 / (between**2 / (len(means) - 1) + over_prompts**2 / (prompts - 1))
    half = float(scipy_stats.t.ppf(0.975, freedom)) * math.sqrt(error)
    return [float(means.mean()) - half, float(means.mean()) + half]
