"""What policies wrote and judges said of it: the lines of `evaluate/samples.jsonl`, and their numbers as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

from rlhf.evaluation.stats import Floats


class SampledCompletion(TypedDict):
    """One completion of a policy, with what was measured of it."""

    text: str
    """What was written, without special tokens."""
    tokens: int | None
    """Its length; null only of what is no completion (`regressions`)."""
    finished: bool
    """Whether it ended by itself and not at the limit."""
    kl: float | None
    """KL to the policy's reference, nats a completion; null without a reference."""
    scores: dict[str, float | None]
    """By judge; null where a judge gives none."""
    log_prob: NotRequired[float | None]
    """Log-probability of the completion, the sum over its actions, nats; missing in samples of earlier versions."""


class Row(TypedDict):
    """A prompt and every policy's completions; a line of `evaluate/samples.jsonl`."""

    index: int
    """Its line, from 0."""
    prompt: Any
    """Text, or messages ({"role", "content"})."""
    columns: dict[str, Any]
    """The other columns of the prompt's row."""
    replies: dict[str, list[SampledCompletion]]
    """By policy."""
    preferences: NotRequired[dict[str, dict[str, list[float | None]]]]
    """Judge of pairs -> "POLICY vs BASELINE" -> of each sample the share, 0 to 1, of the judge's answers in which the
    policy's was better than the baseline's sample of the same number; null where it gave none."""


def completion_values(rows: Sequence[Row], policy: str, field: Literal["tokens", "finished", "kl"]) -> Floats:
    """One number of each completion as an array.

    Args:
        rows: P rows.
        policy: Whose completions.
        field: Which number.

    Returns:
        Array (P, S), S the most samples any prompt has; NaN where there is no such completion or no finite number.
    """
    return as_array([[sample.get(field) for sample in row["replies"].get(policy, [])] for row in rows])


def scores(rows: Sequence[Row], policy: str, judge: str) -> Floats:
    """The scores of a policy's completions by one judge, as an array like that of `completion_values`."""
    return as_array([[sample["scores"].get(judge) for sample in row["replies"].get(policy, [])] for row in rows])


def as_array(values: Sequence[Sequence[float | None]]) -> Floats:
    """Rows of unequal lengths as one array, NaN where there is no finite number."""
    array_PS = np.full((len(values), max(map(len, values), default=0)), np.nan)
    for p, of_prompt in enumerate(values):
        for s, value in enumerate(of_prompt):
            if value is not None and math.isfinite(value):
                array_PS[p, s] = value
    return array_PS
