"""How good a reward model is on pairs that it did not see, beside a judge that only measures length.

The one definition of a reward model's accuracy and of the length baseline: the stage that trains a reward model, the
gate and the report all have them from `pair_accuracy`. Axes: M held-out pairs, N training pairs, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from scipy import special

from rlhf.data.records import Preference, Text
from rlhf.data.splits import canonical
from rlhf.evaluation.calibration import (
    CalibrationBin,
    LengthBucket,
    accuracy_by_length,
    calibration_curve,
    expected_calibration_error,
)
from rlhf.evaluation.stats import Floats, Interval, wilson_interval, wins
from rlhf.rewards import RewardFunction

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 24

SetName = Literal["chosen", "rejected", "policy"]
"""Whose completions were scored: the two sides of the held-out pairs, or the policy that training starts from."""


class ScoreSet(TypedDict):
    """The scores of one set of completions."""

    n: int
    """Completions with a finite score."""
    mean: float
    """Mean of their scores, in the reward model's units."""
    std: float
    """Their standard deviation, in the same units."""
    quantiles: list[float]
    """At `Distribution.quantiles`."""
    counts: list[int]
    """In the bins between `Distribution.edges`."""


class Distribution(TypedDict, total=False):
    """Scores of several sets of completions over common bins; a set without a finite score is left out."""

    edges: list[float]
    """Ends of the bins, in the reward model's units: one more than there are bins."""
    quantiles: list[float]
    """Shares between 0 and 1."""
    chosen: ScoreSet
    """Of the pairs' chosen completions."""
    rejected: ScoreSet
    """Of the pairs' rejected completions."""
    policy: ScoreSet
    """Of what the policy wrote."""


class Invariance(TypedDict):
    """How far a score moves with what should not matter, in standard deviations of the scores."""

    batch: float | None
    """Largest change between all completions scored together, padded to the longest, and each by itself; null where
    none has a score, or one has it in one of the two only."""
    eos: float | None
    """Mean change when the text already ends in the end token; null where there is no such token, or no score."""


class PairAccuracy(TypedDict):
    """How often a reward model ranks held-out pairs right, beside the length baseline."""

    n: int
    """Pairs."""
    accuracy: float
    """Share of the pairs ranked right; a tie counts half, and so does a pair without both scores."""
    accuracy_ci: list[float]
    """Its 95% interval; pairs of one prompt count together (`clustered_interval`)."""
    length_baseline: float
    """Share that length alone ranks right (`length_baseline`)."""
    length_baseline_ci: list[float]
    """Its 95% interval, as that of the accuracy."""


class PairMeasures(PairAccuracy):
    """Everything that is measured of a reward model on held-out pairs."""

    prompts: int
    """Different prompts of the pairs."""
    n_effective: int
    """Independent pairs that they count as (`effective_pairs`)."""
    unscored: int
    """Completions without a finite score, of 2 n."""
    prefers_longer: float | None
    """Share of the pairs of different lengths in which the model prefers the longer completion."""
    ece: float | None
    """Expected calibration error of sigmoid(margin)."""
    calibration: list[CalibrationBin]
    by_length: list[LengthBucket]
    """Accuracy by the difference in length, in characters."""


@dataclass(frozen=True)
class Pairs:
    """Held-out pairs, and what the length baseline needs to know of the others."""

    records: list[Preference]
    length_M: Floats
    """Characters of the chosen completion less those of the rejected one."""
    train_length_N: Floats
    """The same of the training pairs, which decide whether the length baseline prefers long or short."""

    @property
    def prompts(self) -> list[Text]:
        """Prompt of each."""
        return [record.prompt for record in self.records]


def score_pairs(judge: RewardFunction, pairs: Sequence[Preference]) -> Floats:
    """Scores of the chosen and the rejected completion, array (M, 2); the two of a pair are scored together."""
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    completions = [completion for pair in pairs for completion in (pair.chosen, pair.rejected)]
    return np.array(judge(prompts, completions), dtype=float).reshape(-1, 2)


def margins(scores_M2: Floats) -> Floats:
    """Scores of the chosen less those of the rejected; NaN where one is not finite."""
    known_M2 = np.where(np.isfinite(scores_M2), scores_M2, np.nan)
    return known_M2[:, 0] - known_M2[:, 1]


def pair_accuracy(scores_M2: Floats, pairs: Pairs) -> PairAccuracy:
    """Accuracy of a reward model on held-out pairs, and of the length baseline on the same.

    Args:
        scores_M2: Scores of chosen and rejected.
        pairs: The pairs; without a training pair the length baseline learns its direction from these.
    """
    prompts = [canonical(prompt) for prompt in pairs.prompts]
    right_M = _right(margins(scores_M2))
    train_N = pairs.train_length_N if len(pairs.train_length_N) else pairs.length_M
    baseline_M = length_baseline(train_N, pairs.length_M)
    return PairAccuracy(
        n=len(right_M),
        accuracy=float(right_M.mean()),
        accuracy_ci=list(clustered_interval(right_M, prompts)),
        length_baseline=float(baseline_M.mean()),
        length_baseline_ci=list(clustered_interval(baseline_M, prompts)),
    )


def examine(scores_M2: Floats, pairs: Pairs) -> PairMeasures:
    """How good a reward model is on held-out pairs.

    Args:
        scores_M2: Scores of chosen and rejected.
        pairs: The pairs.
    """
    margins_M = margins(scores_M2)
    curve = calibration_curve(margins_M)
    prompts = [canonical(prompt) for prompt in pairs.prompts]
    differ_M = pairs.length_M != 0
    longer_M = _right((margins_M * np.sign(pairs.length_M))[differ_M])
    return PairMeasures(
        prompts=len(set(prompts)),
        n_effective=effective_pairs(_right(margins_M), prompts),
        unscored=int((~np.isfinite(scores_M2)).sum()),
        prefers_longer=float(longer_M.mean()) if differ_M.any() else None,
        ece=expected_calibration_error(curve),
        calibration=curve,
        by_length=accuracy_by_length(margins_M, pairs.length_M),
        **pair_accuracy(scores_M2, pairs),
    )


def _right(margins_M: Floats) -> Floats:
    """1 where a pair is ranked right, 0 where wrong, one half for a tie and where a score is missing."""
    return np.nan_to_num(wins(margins_M), nan=0.5)


def length_baseline(train_N: Floats, held_out_M: Floats) -> Floats:
    """Wins of the judge that prefers the longer completion, or the shorter, whichever is right more often in training.

    Lengths are characters, not tokens: all reward models, functions and ensembles included, then stand beside the same
    baseline, whatever their tokenizers, and it is what `rlhf check` says of the data.

    Args:
        train_N: Length of chosen minus length of rejected, training pairs.
        held_out_M: The same for the held-out pairs.

    Returns:
        1 where it is right, 0 where wrong, 0.5 where both are as long.
    """
    sign = 1.0 if wins(train_N).mean() >= 0.5 else -1.0
    return wins(sign * held_out_M)


def effective_pairs(wins_M: Floats, prompts: Sequence[str]) -> int:
    """As how many independent pairs the pairs count, of which several may share a prompt.

    With share p = mean(w), residuals e = w - p, P prompts and E_j the sum of the residuals of prompt j, the design
    effect is what keeping a prompt's pairs together does to the variance of p:

        deff = max(1, [P / (P - 1) sum_j E_j^2] / [M / (M - 1) sum_i e_i^2])
        M_eff = floor(M / deff * (t(M - 1) / t(P - 1))^2), t(d) the 97.5% quantile of Student's with d degrees

    Sources: Kish 1965, "Survey Sampling", section 8.2 (design effect); Rao & Scott 1992, "A Simple Method for the
    Analysis of Clustered Binary Data" (dividing counts by it); Korn & Graubard 1998, "Confidence Intervals for
    Proportions with Small Expected Number of Positive Counts Estimated from Survey Data" (the t's: the variance is
    estimated from P values only). Deviations: deff is at least 1; where all residuals are 0 it cannot be estimated, and
    is that of pairs that always agree within a prompt, sum_j m_j^2 / M; M_eff is a whole number.

    Args:
        wins_M: 1, 0 or a half for a tie, a pair each.
        prompts: Of each pair, what tells its prompt from others.

    Returns:
        M where no two pairs share a prompt; 0 where all share one: then nothing is known of other prompts.

    Raises:
        ValueError: There are not as many prompts as pairs.
    """
    if len(prompts) != len(wins_M):
        raise ValueError(f"{len(prompts)} prompts of {len(wins_M)} pairs")
    _, place_M, size_P = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    pairs, groups = len(wins_M), len(size_P)
    if groups == pairs:
        return pairs
    if groups == 1:
        return 0
    residual_M = wins_M - wins_M.mean()
    apart = pairs / (pairs - 1) * float((residual_M**2).sum())
    together = groups / (groups - 1) * float((np.bincount(place_M, residual_M) ** 2).sum())
    deff = max(1.0, together / apart) if apart else float((size_P**2).sum()) / pairs
    few = float(special.stdtrit(pairs - 1, 0.975) / special.stdtrit(groups - 1, 0.975))
    return math.floor(pairs / deff * few**2)


def clustered_interval(wins_M: Floats, prompts: Sequence[str]) -> Interval:
    """95% interval of a share of pairs that keeps the pairs of a prompt together: Wilson's with `effective_pairs`.

    A coin's lower end lies above one half in 2 to 3.5% of 4,000 simulations each (nominal: 2.5%) with all 6 pairs of 4
    completions of 10, 20, 60 or 200 prompts; Wilson's own in 5 to 12%.

    Args:
        wins_M: 1, 0 or a half for a tie, a pair each.
        prompts: Of each pair, what tells its prompt from others.

    Returns:
        Low and high end; exactly Wilson's where each prompt has one pair.
    """
    count = effective_pairs(wins_M, prompts)
    return wilson_interval(float(wins_M.mean()) * count if count < len(wins_M) else float(wins_M.sum()), count)


def invariance(judge: RewardFunction, pairs: Sequence[Preference], std: float) -> Invariance:
    """How far a score moves with what should not matter, in standard deviations of the scores.

    Args:
        judge: The reward model.
        pairs: Pairs to try it on.
        std: Standard deviation of its scores.
    """
    prompts = [pair.prompt for pair in pairs]
    completions = [pair.chosen for pair in pairs]
    together_M = np.array(judge(prompts, completions), dtype=float)
    alone_M = np.array([judge([pair.prompt], [pair.chosen])[0] for pair in pairs], float)
    scale = std or 1.0
    end, ended = _end_token(judge), None
    if end is not None:
        ended_M = np.array(judge(prompts, [_with_end(completion, end) for completion in completions]), dtype=float)
        moved_M = np.abs(ended_M - together_M)
        moved_M = moved_M[np.isfinite(moved_M)]
        ended = float(moved_M.mean() / scale) if len(moved_M) else None
    known_M = np.isfinite(together_M)
    comparable = known_M.any() and (known_M == np.isfinite(alone_M)).all()
    batch = float(np.abs(together_M - alone_M)[known_M].max() / scale) if comparable else None
    return Invariance(batch=batch, eos=ended)


def distribution(scores: Mapping[SetName, Floats]) -> Distribution:
    """Mean, standard deviation, quantiles and a histogram over common edges of several sets of scores."""
    known = {name: values[np.isfinite(values)] for name, values in scores.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(known.values())), bins=_BINS)
    summary = Distribution(edges=[float(edge) for edge in edges], quantiles=list(_QUANTILES))
    for name, values in known.items():
        if len(values):
            summary[name] = ScoreSet(
                n=len(values),
                mean=float(values.mean()),
                std=float(values.std()),
                quantiles=[float(quantile) for quantile in np.quantile(values, _QUANTILES)],
                counts=[int(count) for count in np.histogram(values, bins=edges)[0]],
            )
    return summary


def _end_token(judge: Any) -> str | None:
    """The end token of a reward model, of an ensemble its first's; None of a function."""
    judge = getattr(judge, "models", [judge])[0]
    return getattr(getattr(judge, "tokenizer", None), "eos_token", None)


def _with_end(completion: Text, end: str) -> Text:
    if isinstance(completion, str):
        return completion + end
    return [*completion[:-1], {**completion[-1], "content": completion[-1]["content"] + end}]
