"""Whether training went past the point up to which its proxy and a judge it did not see agree. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from rlhf.evaluation.stats import Floats, bootstrap_ci
from rlhf.evaluation.words import number


class Point(TypedDict):
    """A checkpoint on fixed prompts; means over prompts."""

    step: int
    """Optimizer steps; 0 is the policy that training started from."""
    kl: float
    """KL to the policy that training started from, nats a reply."""
    length: float
    """Tokens a reply."""
    gold: float
    """Score by the judge that training did not see."""
    gold_ci: list[float]
    """Its 95% interval."""
    proxy: float | None
    """What was maximised: rewards in standard deviations of the starting policy's replies, weighted; None for DPO."""
    proxy_ci: list[float] | None
    """Its 95% interval."""


def point(step: int, kl_P: Floats, length_P: Floats, gold_P: Floats, proxy_P: Floats | None) -> Point:
    """Sum a checkpoint up; every array has one value a prompt."""
    return Point(
        step=step,
        kl=float(np.mean(kl_P)),
        length=float(np.mean(length_P)),
        gold=float(np.nanmean(gold_P)),
        gold_ci=list(bootstrap_ci(gold_P)),
        proxy=None if proxy_P is None else float(np.nanmean(proxy_P)),
        proxy_ci=None if proxy_P is None else list(bootstrap_ci(proxy_P)),
    )


def peak(points: Sequence[Point]) -> int:
    """Index of the checkpoint with the highest mean gold score; the start is none. Of equals the earlier."""
    return max(range(1, len(points)), key=lambda index: (points[index]["gold"], -index))


def warning(points: Sequence[Point], gold_P: Sequence[Floats]) -> str | None:
    """What to be told of a run whose gold score turned down, or never rose; else None.

    Gold turned down if the interval of the paired difference over prompts, last checkpoint less the peak, lies below
    zero. The peak being the best of several, that difference is somewhat overstated.

    Args:
        points: The start and the checkpoints, in order.
        gold_P: Gold scores of each, one value a prompt.
    """
    last, best = len(points) - 1, peak(points)
    ends = points[best], points[last]
    if best != last and bootstrap_ci(gold_P[last] - gold_P[best])[1] < 0:
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
        {**one, "prompts": {name: [float(value) for value in of[index]] for name, of in values.items() if len(of)}}
        for index, one in enumerate(points)
    ]
