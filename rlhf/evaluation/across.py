"""Policies that were sampled apart, in several rounds or runs, brought together on the prompts that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.evaluation.samples import Row

_SAMPLED = ("samples", "temperature", "max_new_tokens")
"""Settings of the comparison that must be the same, besides its prompts."""


@dataclass(frozen=True)
class Sampled:
    """A policy and what it wrote."""

    name: str
    """What it is called where the policies are compared."""
    policy: str
    """What it is called in its rows."""
    rows: Sequence[Row]
    """Lines of a samples.jsonl; none where policies have not been compared."""
    settings: Mapping[str, Any]
    """The `evaluate` section behind them."""
    judges: Mapping[str, Any]
    """What identifies each judge that scored them: equal values mean equal judges."""


def problem(sampled: Sequence[Sampled]) -> str | None:
    """Why policies cannot be compared, or None where they can."""
    for each in sampled:
        if not any(each.policy in row["replies"] for row in each.rows):
            return f"{each.name} has not been compared: rlhf evaluate does that"
    first = sampled[0]
    for each in sampled[1:]:
        if [row["prompt"] for row in each.rows] != [row["prompt"] for row in first.rows]:
            return f"{each.name} was compared on other prompts than {first.name}"
        if other := [key for key in _SAMPLED if each.settings.get(key) != first.settings.get(key)]:
            return f"{each.name} was sampled with another evaluate.{other[0]} than {first.name}"
    if not shared_judges(sampled):
        return "they share no judge: name one under rewards:"
    return None


def shared_judges(sampled: Sequence[Sampled]) -> list[str]:
    """The judges that scored all of them."""
    first = sampled[0].judges
    return [name for name in first if all(each.judges.get(name) == first[name] for each in sampled)]


def joined(sampled: Sequence[Sampled]) -> list[Row]:
    """Rows with the completions of all policies, each under its name; `problem` has found none."""
    return [
        Row(
            index=rows[0]["index"],
            prompt=rows[0]["prompt"],
            columns=rows[0]["columns"],
            replies={each.name: row["replies"].get(each.policy, []) for each, row in zip(sampled, rows, strict=True)},
        )
        for rows in zip(*(each.rows for each in sampled), strict=True)
    ]
