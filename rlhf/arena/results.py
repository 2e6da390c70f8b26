"""What the votes of a run say, as the page of results shows it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.artifacts.rounds import read_round
from rlhf.config.project import StageId
from rlhf.data.votes import VERDICTS, Verdict, Vote
from rlhf.evaluation.agreement import Agreement, JudgeAgreement, annotator_agreement, judge_agreement
from rlhf.evaluation.ratings import Rating, WinRate, orders, outcomes, ratings, win_rates
from rlhf.workflow import BASE, is_stage, kind_of, stage_of


@dataclass(frozen=True)
class Annotator:
    """How far somebody is."""

    name: str
    votes: int
    skipped: int
    edits: int
    seconds: float | None
    """Median time of a vote; None without one."""


@dataclass(frozen=True)
class Results:
    """What the votes say."""

    votes: int
    comparisons: int
    """Those with a vote."""
    verdicts: dict[Verdict, int]
    """How often each was given."""
    policies: list[str]
    """In the order of their ratings."""
    ratings: list[Rating]
    rates: dict[tuple[str, str], WinRate]
    """By policy and baseline."""
    first_shown: tuple[float, list[float] | None, int]
    """How often the reply shown first won, with its interval, and of how many votes."""
    judges: list[JudgeAgreement]
    agreement: Agreement
    annotators: list[Annotator]
    seconds: float | None
    """Median time of a vote."""
    edits: int


def results(votes: Sequence[Vote]) -> Results:
    """What votes say of policies, judges and annotators."""
    judged = outcomes(votes)
    rated = ratings(judged)
    rates = {(rate["policy"], rate["baseline"]): rate for rate in win_rates(judged)}
    by_annotator: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_annotator[vote.ballot.annotator].append(vote)
    return Results(
        votes=len(votes),
        comparisons=len({vote.ballot.comparison.id for vote in votes}),
        verdicts={verdict: sum(vote.verdict == verdict for vote in votes) for verdict in VERDICTS},
        policies=[rating["policy"] for rating in rated],
        ratings=rated,
        rates=rates,
        first_shown=orders(votes),
        judges=judge_agreement(votes),
        agreement=annotator_agreement(votes),
        annotators=sorted(
            (_annotator(name, cast) for name, cast in by_annotator.items()), key=lambda each: (-each.votes, each.name)
        ),
        seconds=_median(votes),
        edits=sum(vote.edit is not None for vote in votes),
    )


def preferences(found: Results) -> list[tuple[WinRate, bool]]:
    """The win rate of each pair of policies, of the one that is preferred, and whether its interval excludes one half.

    Those of which that is so come first, the highest rate before the others.
    """
    ahead = [
        rate if rate["rate"] >= 0.5 else found.rates[baseline, policy]
        for (policy, baseline), rate in found.rates.items()
        if policy < baseline
    ]
    decided = [(rate, rate["rate_ci"] is not None and rate["rate_ci"][0] > 0.5) for rate in ahead]
    return sorted(decided, key=lambda each: (not each[1], -each[0]["rate"]))


def base_label(run_dir: Path) -> str:
    """What the base model of a run is called: of a later round, the policy that it starts from."""
    record = read_round(run_dir)
    return "Base" if record is None else f"Round {record['round'] - 1}'s {policy_label(record['start'])}"


def policy_label(name: str, base: str = "Base") -> str:
    """What a policy is called on the page: `DPO` for `dpo`; a server's name as it is.

    Args:
        name: The policy's name in the run.
        base: What the base model is called; of a later round it is what the round before left.
    """
    if name == BASE:
        return base
    if not is_stage(name):
        return name
    repetition = StageId.parse(name).repetition
    return stage_of(kind_of(name)).label + (f"@{repetition}" if repetition else "")


def _annotator(name: str, votes: Sequence[Vote]) -> Annotator:
    return Annotator(
        name, len(votes), sum(vote.verdict == "skip" for vote in votes),
        sum(vote.edit is not None for vote in votes), _median(votes),
    )  # fmt: skip


def _median(votes: Sequence[Vote]) -> float | None:
    return statistics.median(vote.seconds for vote in votes) if votes else None
