"""Whether training went past the point up to which its proxy and a judge it did not see agree. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from rlhf.evaluation.compare import MIN_PROMPTS
from rlhf.evaluation.stats import Floats, bootstrap_ci, finite_mean, mean_interval
from rlhf.report.phrases import number


class Point(TypedDict):
    """A checkpoint on fixed prompts; means over prompts."""

    step: int
    """Optimizer steps; 0 is the policy that training started from."""
    kl: float
    """KL to the policy that training started from, nats a reply."""
    length: float
    """Tokens a reply."""
    gold: float | None
    """Score by the judge that training did not see; means are over the prompts that it scores at every checkpoint."""
    gold_ci: list[float] | None
    """Its 95% interval."""
    proxy: float | None
    """What was maximised: rewards in standard deviations of the starting policy's replies, weighted; None for DPO."""
    proxy_ci: list[float] | None
    """Its 95% interval."""


def scored_everywhere(gold_P: Sequence[Floats]) -> NDArray[np.bool_]:
    """The prompts on which the gold judge has a score at every checkpoint: only on these can they be compared."""
    return np.isfinite(np.stack(gold_P)).all(0)


def point(step: int, kl_P: Floats, length_P: Floats, gold_P: Floats, proxy_P: Floats | None) -> Point:
    """Sum a checkpoint up; every array has one value a prompt, those of `scored_everywhere`."""
    return Point(
        step=step,
        kl=finite_mean(kl_P) or 0.0,
        length=finite_mean(length_P) or 0.0,
        gold=finite_mean(gold_P),
        gold_ci=mean_interval(gold_P),
        proxy=None if proxy_P is None else finite_mean(proxy_P),
        proxy_ci=None if proxy_P is None else mean_interval(proxy_P),
    )


def peak(gold_P: Sequence[Floats]) -> int:
    """Index of the checkpoint with the highest mean gold score; the start, at 0, is none. Of equals the earlier.

    Args:
        gold_P: Gold scores of the start and of each checkpoint, one value a prompt of `scored_everywhere`.

    Returns:
        The last index where fewer than `MIN_PROMPTS` prompts are left to choose by.
    """
    if len(gold_P[0]) < MIN_PROMPTS:
        return len(gold_P) - 1
    return max(range(1, len(gold_P)), key=lambda index: (float(np.mean(gold_P[index])), -index))


def warning(points: Sequence[Point], gold_P: Sequence[Floats]) -> str | None:
    """What to be told of a run whose gold score turned down, or never rose; else None.

    Gold turned down if the interval of the paired difference over prompts, last checkpoint less the peak, lies below
    zero. The peak is the best of several, so the interval's level is raised for how many it was chosen from: with m
    of them to 1 - 0.05 / m (Bonferroni).

    Args:
        points: The start and the checkpoints, in order.
        gold_P: Gold scores of each, one value a prompt of `scored_everywhere`.
    """
    if (count := len(gold_P[0])) < MIN_PROMPTS:
        return f"the gold judge scores {count} prompts at every checkpoint: too few to choose by, the last is kept"
    last, best = len(points) - 1, peak(gold_P)
    ends = points[best], points[last]
    level = 1 - 0.05 / max(1, last - 1)
    if best != last and bootstrap_ci(gold_P[last] - gold_P[best], level=level)[1] < 0:
        said = (
            f"over-optimised: the gold score turned down after step {ends[0]['step']} (KL {number(ends[0]['kl'], 1)} "
            f"nats), {number(ends[0]['gold'])} to {number(ends[1]['gold'])} at the last"
        )
        if ends[0]["proxy"] is not None and ends[1]["proxy"] is not None and ends[1]["proxy"] > ends[0]["proxy"]:
            said += f", while what was maximised rose from {number(ends[0]['proxy'])} to {number(ends[1]['proxy'])}"
        return said
    if bootstrap_ci(gold_P[best] - gold_P[0])[1] < 0:
        return (
            f"no checkpoint reaches the gold score that training started from ({number(points[0]['gold'])}; the best, "
            f"step {ends[0]['step']}, has {number(ends[0]['gold'])})"
        )
    return None


def as_rows(points: Sequence[Point], **values: Sequence[Floats]) -> list[dict[str, Any]]:
    """A line of `tracked.jsonl` for each checkpoint: the point, and the values of each prompt by name."""
    return [
        {
            **one,
            "prompts": {
                name: [float(value) if np.isfinite(value) else None for value in of[index]]
                for name, of in values.items()
                if len(of)
            },
        }
        for index, one in enumerate(points)
    ]
