"""What one policy is like: mean scores, length, endings, KL and variety of its completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np

from rlhf.evaluation.diversity import distinct_n, repetition
from rlhf.evaluation.samples import Row, completion_values, scores
from rlhf.evaluation.stats import Floats, finite_mean, mean_interval, mean_per_prompt


class Quantity(TypedDict):
    """A mean over prompts."""

    mean: float | None
    """Null where no prompt has a value."""
    ci: list[float] | None
    """Its 95% interval."""
    n: int
    """Prompts with a value."""


class Variety(Quantity):
    """A mean over prompts, and the same of all completions taken together."""

    all: float | None


class Summary(TypedDict):
    """What one policy is like; an entry of `policies` in report.json."""

    policy: str
    """Its name."""
    scores: dict[str, Quantity]
    """By judge."""
    length: Quantity
    """Tokens a completion."""
    finished: Quantity
    """Share of completions that ended by themselves."""
    kl: Quantity
    """Nats a completion, to `kl_reference`."""
    distinct_1: Variety
    """Distinct words over all words of the completions of one prompt."""
    distinct_2: Variety
    """The same of pairs of words."""
    repetition: Quantity
    """Share of a completion's runs of four words that stood in it before."""
    kl_reference: str | None
    """The policy that `kl` is measured to."""


def summarise(rows: Sequence[Row], policy: str, judges: Sequence[str], kl_reference: str | None = None) -> Summary:
    """Mean and interval, over prompts, of a policy's scores, lengths, endings, KL and variety.

    Diversity is over the samples of a prompt, so with one sample it only sees repetition within a completion.
    """
    texts = [[sample["text"] for sample in row["replies"].get(policy, [])] for row in rows]

    def measured(field: Literal["tokens", "finished", "kl"]) -> Quantity:
        return quantity(mean_per_prompt(completion_values(rows, policy, field)))

    def distinct(n: int) -> Variety:
        together = distinct_n([text for samples in texts for text in samples], n)
        return Variety(
            all=None if math.isnan(together) else together,
            **quantity(np.array([distinct_n(samples, n) for samples in texts])),
        )

    repeated = [np.array([repetition(text) for text in samples]) for samples in texts]
    return Summary(
        policy=policy,
        scores={judge: quantity(mean_per_prompt(scores(rows, policy, judge))) for judge in judges},
        length=measured("tokens"),
        finished=measured("finished"),
        kl=measured("kl"),
        distinct_1=distinct(1),
        distinct_2=distinct(2),
        repetition=quantity(np.array([finite_mean(values_S) for values_S in repeated], dtype=np.float64)),
        kl_reference=kl_reference,
    )


def quantity(values_P: Floats) -> Quantity:
    """A mean over the values that are finite, with its interval."""
    values_P = values_P[np.isfinite(values_P)]
    return Quantity(mean=finite_mean(values_P), ci=mean_interval(values_P), n=len(values_P))
