"""One comparison under several training seeds -> what holds for the recipe, and not only for one run of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from scipy import optimize, special

from rlhf.evaluation.compare import Comparison, Decision, Verdict, decide, decided, shown_alone, verdict_of
from rlhf.evaluation.stats import Floats
from rlhf.workflow import kind_of

MIN_SEEDS = 3
"""Fewest seeds with an interval: the spread of two is hardly known (Student's t of 12.7 at 95%)."""


class SeedSummary(TypedDict):
    """One policy against one baseline, by one judge, over the seeds it was trained with."""

    policy: str
    """The policy, without its repetition."""
    baseline: str
    """The policy that it is compared with."""
    judge: str
    """Who or what scored the completions."""
    n_seeds: int
    """Seeds with a mean difference."""
    mean: float | None
    """Mean over seeds of the mean difference."""
    std: float | None
    """Standard deviation between seeds, n - 1 in the denominator; null for one seed."""
    min: float | None
    """Smallest mean difference of a seed."""
    max: float | None
    """Largest mean difference of a seed."""
    ci: list[float] | None
    """95% interval of the mean over seeds and prompts; null for fewer than `MIN_SEEDS` seeds."""
    win_rate: float | None
    """Mean over seeds."""
    n: int
    """Prompts of the seed that has fewest."""
    p_value: float | None
    """Of the mean, two-sided, from the interval; null where there is none."""
    p_adjusted: float | None
    """The same after Holm's correction for `n_comparisons`."""
    n_comparisons: int
    """Comparisons read together (`over_seeds`): those of several seeds, and those of one where there are no more."""
    verdict: Verdict
    """As in `Comparison`: from the interval and p_adjusted."""
    corrected: bool
    """The interval alone would have shown a difference, p_adjusted does not."""
    doubted: bool
    """As in `Comparison`."""


class Spread(NamedTuple):
    """What the mean difference of a recipe is uncertain by."""

    between: float
    """Its variance by what seeds bring in."""
    seeds: int
    over_prompts: float
    """Its variance by what prompts bring in."""
    prompts: int

    def half_width(self, alpha: float) -> float:
        """Half the interval of level 1 - alpha."""
        seeds, prompts = (float(special.stdtrit(count - 1, alpha / 2)) for count in (self.seeds, self.prompts))
        return math.sqrt(seeds**2 * self.between + prompts**2 * self.over_prompts)

    def p_value(self, mean: float) -> float:
        """The alpha whose interval ends at zero; not below 2^(1 - prompts), what sign flips over prompts can show."""

        def excess(log_alpha: float) -> float:
            return self.half_width(math.exp(log_alpha)) - abs(mean)

        if not mean:
            return 1.0
        least = max(2.0 ** (1 - self.prompts), 1e-30)
        return least if excess(math.log(least)) <= 0 else math.exp(optimize.brentq(excess, math.log(least), 0.0))


def summarise_seeds(comparisons: Sequence[Comparison]) -> SeedSummary:
    """What several seeds of one recipe show together, as the only comparison there is.

    The seeds are judged on the same prompts, so what prompts bring in does not show between seeds. The interval has
    both: mean +/- sqrt(t(k - 1)² s²/k + t(n - 1)² e²), with s the standard deviation between k seeds, e² the mean over
    seeds of the squared standard error over n prompts, and t(d) Student's quantile at d degrees of freedom. It covers
    the recipe's difference with at least its level, whatever the two variances are (Banerjee 1960, "On Confidence
    Interval for Two-Means Problem Based on Separate Estimates of Variances and Tabulated Values of t-Table"), in the
    far tails too, where Holm's correction reads it and Satterthwaite's degrees of freedom do not hold for few seeds.
    What is chance in both, such as which completions were sampled, is counted twice: the interval is rather too wide.

    Args:
        comparisons: The same policy, baseline and judge, one of each seed.

    Raises:
        ValueError: No comparison, or not all of the same.
    """
    kinds = {_recipe(row) for row in comparisons}
    if len(kinds) != 1:
        raise ValueError(f"expected one comparison under several seeds, got {sorted(kinds)}")
    policy, baseline, judge = kinds.pop()
    known = [row for row in comparisons if row["mean_difference"] is not None]
    means = np.array([row["mean_difference"] for row in known], dtype=np.float64)
    rates = [row["win_rate"] for row in known if row["win_rate"] is not None]
    mean = float(means.mean()) if known else None
    spread = _spread(means, known)
    interval = p_value = None
    if mean is not None and spread is not None:
        half = spread.half_width(0.05)
        interval, p_value = [mean - half, mean + half], spread.p_value(mean)
    summary = SeedSummary(
        policy=policy,
        baseline=baseline,
        judge=judge,
        n_seeds=len(known),
        mean=mean,
        std=float(means.std(ddof=1)) if len(known) > 1 else None,
        min=float(means.min()) if known else None,
        max=float(means.max()) if known else None,
        ci=interval,
        win_rate=float(np.mean(rates)) if rates else None,
        n=min((row["n"] for row in known), default=0),
        p_value=p_value,
        p_adjusted=None,
        n_comparisons=0,
        verdict="no difference",
        corrected=False,
        doubted=False,
    )
    return _decided(summary, decide([verdict_of(interval, summary["n"])], [p_value])[0])


def over_seeds(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], list[SeedSummary]]:
    """Join what was trained with several seeds (`dpo`, `dpo@1`, `dpo@2`), and decide what is read together.

    One family are the recipes that have an interval over seeds, and the comparisons that belong to none of these. A
    single seed of such a recipe is no further chance of a false verdict: its p_adjusted, by Holm's correction for all
    single seeds, is at least its recipe's.

    Args:
        comparisons: Of `compare.compare_policies`.

    Returns:
        The comparisons, decided anew, and the recipes with more than one seed.
    """
    recipes: dict[tuple[str, str, str], list[Comparison]] = {}
    for row in comparisons:
        recipes.setdefault(_recipe(row), []).append(row)
    summaries = {recipe: summarise_seeds(rows) for recipe, rows in recipes.items() if len(rows) > 1}
    joined = {recipe: row for recipe, row in summaries.items() if row["p_value"] is not None}
    alone = [row for row in comparisons if _recipe(row) not in joined]
    verdicts, p_values = shown_alone(alone)
    decisions = decide(
        [*(verdict_of(row["ci"], row["n"]) for row in joined.values()), *verdicts],
        [*(row["p_value"] for row in joined.values()), *p_values],
    )
    for (recipe, summary), decision in zip(joined.items(), decisions, strict=False):
        summaries[recipe] = _decided(summary, decision)
    single = [row for row in comparisons if _recipe(row) in joined]
    at_least = [summaries[_recipe(row)]["p_adjusted"] or 0.0 for row in single]
    of_single, of_alone = iter(decide(*shown_alone(single), at_least)), iter(decisions[len(joined) :])
    comparisons = [decided(row, next(of_single if _recipe(row) in joined else of_alone)) for row in comparisons]
    return comparisons, list(summaries.values())


def _recipe(row: Comparison) -> tuple[str, str, str]:
    return kind_of(row["policy"]), kind_of(row["baseline"]), row["judge"]


def _decided(row: SeedSummary, decision: Decision) -> SeedSummary:
    copy = row.copy()
    copy["verdict"], copy["p_adjusted"], copy["n_comparisons"], copy["corrected"] = decision
    return copy


def _spread(means: Floats, known: Sequence[Comparison]) -> Spread | None:
    """What several seeds' mean is uncertain by; None for fewer than `MIN_SEEDS` seeds with an interval."""
    if len(known) < MIN_SEEDS or any(row["difference_ci"] is None for row in known):
        return None
    prompts = min(row["n"] for row in known)
    quantile = float(special.stdtrit(prompts - 1, 0.975))
    widths = [row["difference_ci"][1] - row["difference_ci"][0] for row in known if row["difference_ci"]]
    over_prompts = float(np.mean([(width / (2 * quantile)) ** 2 for width in widths]))
    return Spread(float(means.var(ddof=1)) / len(means), len(means), over_prompts, prompts)
