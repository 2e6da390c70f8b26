"""The policies that the rounds of a run left, compared on the same prompts: what each had sampled is read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from rlhf.evaluation.compare import Comparison, compare, correct
from rlhf.evaluation.samples import Row, scores
from rlhf.evaluation.stats import mean_per_prompt
from rlhf.evaluation.summary import Quantity, quantity

_SAMPLED = ("samples", "temperature", "max_new_tokens")
"""Settings of the comparison that rounds must share, besides its prompts."""


class RoundSummary(TypedDict):
    """The policy that a round left."""

    round: int
    policy: str
    """The stage."""
    label: str
    """The stage as it is written in a table."""
    votes: int
    """Votes cast before the round began, those that skip a comparison left out."""
    scores: dict[str, Quantity]
    """By judge."""


class Rounds(TypedDict):
    """The rounds up to this one; `rounds` in report.json."""

    round: int
    """This one, 2 or more."""
    judges: list[str]
    """Those that all rounds share: not a round's own reward model."""
    rounds: list[RoundSummary]
    """From the first to this one."""
    comparisons: list[Comparison]
    """Each with the round before and with the first; policies are called `round 2`. Corrected together."""
    problem: str | None
    """Why the rounds are not compared; null where they are."""


@dataclass(frozen=True)
class Left:
    """What a round left: its policy, and what is known of its comparison."""

    round: int
    policy: str
    label: str
    votes: int
    rows: Sequence[Row]
    """Lines of its samples.jsonl; none where policies have not been compared."""
    settings: Mapping[str, Any]
    """Its `evaluate` section."""
    judges: Mapping[str, Any]
    """What identifies each judge that is not a reward model of the round itself."""


def compare_rounds(left: Sequence[Left]) -> Rounds:
    """Compare each round's policy with those of the round before and of the first, on the same prompts.

    Args:
        left: The rounds from the first on, two or more.
    """
    problem = _problem(left)
    first = left[0].judges
    judges = [name for name in first if all(each.judges.get(name) == first[name] for each in left)]
    if problem is None and not judges:
        problem = "they share no judge: name one under rewards:"
    shared = [] if problem else judges
    rows = [] if problem else _joined(left)
    pairs = [(at, before) for at in range(1, len(left)) for before in dict.fromkeys((at - 1, 0))]
    named = [_name(each) for each in left]
    comparisons = [compare(rows, named[at], named[before], judge) for at, before in pairs for judge in shared]
    return Rounds(
        round=left[-1].round,
        judges=shared,
        rounds=[
            RoundSummary(
                round=each.round,
                policy=each.policy,
                label=each.label,
                votes=each.votes,
                scores={judge: quantity(mean_per_prompt(scores(rows, _name(each), judge))) for judge in shared},
            )
            for each in left
        ],
        comparisons=correct(comparisons),
        problem=problem,
    )


def _name(left: Left) -> str:
    return f"round {left.round}"


def _problem(left: Sequence[Left]) -> str | None:
    """Why rounds cannot be compared, if so."""
    for each in left:
        if not any(each.policy in row["replies"] for row in each.rows):
            return f"round {each.round} has not been compared: rlhf evaluate does that"
    first = left[0]
    for each in left[1:]:
        if [row["prompt"] for row in each.rows] != [row["prompt"] for row in first.rows]:
            return f"round {each.round} was compared on other prompts than round 1"
        if other := [key for key in _SAMPLED if each.settings.get(key) != first.settings.get(key)]:
            return f"round {each.round} was sampled with another evaluate.{other[0]} than round 1"
    return None


def _joined(left: Sequence[Left]) -> list[Row]:
    """Rows with the completions of each round's policy, under the round's name."""
    return [
        Row(
            index=rows[0]["index"],
            prompt=rows[0]["prompt"],
            columns=rows[0]["columns"],
            replies={_name(each): row["replies"].get(each.policy, []) for each, row in zip(left, rows, strict=True)},
        )
        for rows in zip(*(each.rows for each in left), strict=True)
    ]
