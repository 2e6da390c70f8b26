"""The policies that the rounds of a run left, compared on the same prompts: what each had sampled is read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from rlhf.evaluation.across import Sampled, joined, problem, shared_judges
from rlhf.evaluation.compare import Comparison, compare, correct
from rlhf.evaluation.samples import scores
from rlhf.evaluation.stats import mean_per_prompt
from rlhf.evaluation.summary import Quantity, quantity


class RoundSummary(TypedDict):
    """The policy that a round left."""

    round: int
    """Its number; 1 is the first."""
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
class Left(Sampled):
    """What a round left: its policy, called `round N`, by judges that are no reward model of the round itself."""

    round: int
    label: str
    """The stage as it is written in a table."""
    votes: int
    """Votes cast before the round began."""


def compare_rounds(left: Sequence[Left]) -> Rounds:
    """Compare each round's policy with those of the round before and of the first, on the same prompts.

    Args:
        left: The rounds from the first on, two or more.
    """
    why_not = problem(left)
    shared = [] if why_not else shared_judges(left)
    rows = [] if why_not else joined(left)
    pairs = [(at, before) for at in range(1, len(left)) for before in dict.fromkeys((at - 1, 0))]
    named = [each.name for each in left]
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
                scores={judge: quantity(mean_per_prompt(scores(rows, each.name, judge))) for judge in shared},
            )
            for each in left
        ],
        comparisons=correct(comparisons),
        problem=why_not,
    )
