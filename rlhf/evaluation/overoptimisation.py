"""Whether training went past the point up to which its proxy and a judge it did not see agree. Pure functions.

The judge that training does not see is the checkpoint judge (`stages.X.checkpoint_judge`). Axis: P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from rlhf.evaluation.compare import MIN_PROMPTS
from rlhf.evaluation.formatting import number
from rlhf.evaluation.stats import Floats, bootstrap_ci, finite_mean, mean_interval

Course = Literal["held", "turned down", "below the start", "unknown"]
"""How a score went from the start of training to its end."""


class Point(TypedDict):
    """A checkpoint on fixed prompts; an entry of `tracked` in a stage's metrics. Means are over prompts."""

    step: int
    """Optimizer steps; 0 is the policy that training started from."""
    kl: float
    """KL to the policy that training started from, nats a completion."""
    length: float
    """Tokens a completion."""
    checkpoint_judge: float | None
    """Score by the checkpoint judge; the mean is over the prompts that it scores at every checkpoint."""
    checkpoint_judge_ci: list[float] | None
    """Its 95% interval."""
    proxy: float | None
    """What was maximised: rewards in standard deviations of the starting policy's completions, weighted; null for DPO,
    which maximises no reward."""
    proxy_ci: list[float] | None
    """Its 95% interval."""


def scored_everywhere(scores_P: Sequence[Floats]) -> NDArray[np.bool_]:
    """The prompts on which the judge has a score at every checkpoint: only on these can checkpoints be compared."""
    return np.logical_and.reduce([np.isfinite(of_checkpoint) for of_checkpoint in scores_P])


def point(step: int, kl_P: Floats, length_P: Floats, judge_P: Floats, proxy_P: Floats | None) -> Point:
    """Sum a checkpoint up.

    Args:
        step: Optimizer steps.
        kl_P: KL to the start, nats a completion; like every array here one value a prompt of `scored_everywhere`.
        length_P: Tokens a completion.
        judge_P: Scores by the checkpoint judge.
        proxy_P: What was maximised; None where no reward is.
    """
    return Point(
        step=step,
        kl=finite_mean(kl_P) or 0.0,
        length=finite_mean(length_P) or 0.0,
        checkpoint_judge=finite_mean(judge_P),
        checkpoint_judge_ci=mean_interval(judge_P),
        proxy=None if proxy_P is None else finite_mean(proxy_P),
        proxy_ci=None if proxy_P is None else mean_interval(proxy_P),
    )


def peak(judge_P: Sequence[Floats]) -> int:
    """Index of the checkpoint that the judge scores highest; the start, at 0, is no candidate. Of equals the earlier.

    Args:
        judge_P: Scores of the start and of each checkpoint, one value a prompt of `scored_everywhere`.

    Returns:
        The last index where fewer than `MIN_PROMPTS` prompts are left to choose by.
    """
    if len(judge_P[0]) < MIN_PROMPTS:
        return len(judge_P) - 1
    return max(range(1, len(judge_P)), key=lambda index: (float(np.mean(judge_P[index])), -index))


def judge_trend(judge_P: Sequence[Floats]) -> Course:
    """How the checkpoint judge's score went in the course of training.

    It turned down if the interval of the paired difference over prompts, last checkpoint less the peak, lies below
    zero. The peak is the best of several, so the interval's level is raised for how many it was chosen from: with m of
    them to 1 - 0.05 / m (Bonferroni). It stayed below the start if the 95% interval of peak less start lies below zero.

    Args:
        judge_P: Scores of the start and of each checkpoint, one value a prompt of `scored_everywhere`.

    Returns:
        "unknown" where fewer than `MIN_PROMPTS` prompts have a score everywhere.
    """
    if len(judge_P[0]) < MIN_PROMPTS:
        return "unknown"
    last, best = len(judge_P) - 1, peak(judge_P)
    level = 1 - 0.05 / max(1, last - 1)
    if best != last and bootstrap_ci(judge_P[last] - judge_P[best], level=level)[1] < 0:
        return "turned down"
    return "below the start" if bootstrap_ci(judge_P[best] - judge_P[0])[1] < 0 else "held"


def warning(points: Sequence[Point], judge_P: Sequence[Floats]) -> str | None:
    """The `judge_trend` of a run in words where it is a reason to worry, else None.

    Args:
        points: The start and the checkpoints, in order.
        judge_P: Scores of each by the checkpoint judge, one value a prompt of `scored_everywhere`.
    """
    start, at_peak, at_end = points[0], points[peak(judge_P)], points[-1]
    match judge_trend(judge_P):
        case "unknown":
            return (
                f"the checkpoint judge scores {len(judge_P[0])} prompts at every checkpoint: too few to choose by, the "
                "last is kept"
            )
        case "turned down":
            text = (
                f"over-optimised: the checkpoint judge's score turned down after step {at_peak['step']} "
                f"(KL {number(at_peak['kl'], 1)} nats), {number(at_peak['checkpoint_judge'])} to "
                f"{number(at_end['checkpoint_judge'])} at the last"
            )
            before, after = at_peak["proxy"], at_end["proxy"]
            if before is not None and after is not None and after > before:
                text += f", while what was maximised rose from {number(before)} to {number(after)}"
            return text
        case "below the start":
            return (
                "no checkpoint reaches the checkpoint judge's score that training started from "
                f"({number(start['checkpoint_judge'])}; the best, step {at_peak['step']}, has "
                f"{number(at_peak['checkpoint_judge'])})"
            )
    return None


def as_rows(points: Sequence[Point], **values: Sequence[Floats]) -> list[dict[str, Any]]:
    """A line of `tracked.jsonl` for each checkpoint: the point, and under `prompts` each prompt's values by name."""
    return [
        {
            **checkpoint,
            "prompts": {
                name: [float(value) if np.isfinite(value) else None for value in of_checkpoints[index]]
                for name, of_checkpoints in values.items()
                if len(of_checkpoints)
            },
        }
        for index, checkpoint in enumerate(points)
    ]
