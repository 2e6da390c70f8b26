"""How far annotators agree with each other, and judges with annotators."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TypedDict

import krippendorff
import numpy as np
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

from rlhf.data.votes import VERDICTS, Vote
from rlhf.evaluation.stats import share_interval

_SAID = [verdict for verdict in VERDICTS if verdict != "skip"]
"""What a vote can say of two replies; a skipped comparison says nothing."""


class Kappa(TypedDict):
    """Agreement of two annotators."""

    annotators: list[str]
    """Their names, two."""
    kappa: float | None
    """Cohen's κ; None where one answer is all that either gave, which leaves nothing to agree on by chance."""
    comparisons: int
    """Those that both judged."""


class Agreement(TypedDict):
    """Agreement between annotators: 1 is perfect, 0 is what chance gives."""

    pairs: list[Kappa]
    """Of each two annotators who judged the same comparisons."""
    fleiss: float | None
    """Fleiss' κ; None where it cannot be told."""
    fleiss_comparisons: int
    """Comparisons it rests on: those with the same number of votes, as its definition asks for."""
    fleiss_votes: int
    """That number."""
    alpha: float | None
    """Krippendorff's α of nominal answers, which takes comparisons with any number of votes."""
    comparisons: int
    """Comparisons that two annotators or more judged."""


class JudgeAgreement(TypedDict):
    """Agreement of a judge with annotators."""

    judge: str
    """Its name."""
    rate: float
    """Share of the decided votes in which the judge scores the preferred reply higher, equal scores counting half."""
    rate_ci: list[float] | None
    """95%, votes on one prompt averaged first; None for fewer than two prompts."""
    votes: int
    """Decided votes that the rate rests on."""
    prompts: int
    """Prompts that they are on."""


def annotator_agreement(votes: Sequence[Vote]) -> Agreement:
    """Agreement between annotators in what they say of a comparison: first, second, tie or neither.

    Sources: Cohen (1960), "A Coefficient of Agreement for Nominal Scales" (scikit-learn); Fleiss (1971), "Measuring
    Nominal Scale Agreement Among Many Raters" (statsmodels); Krippendorff (2011), "Computing Krippendorff's
    Alpha-Reliability" (krippendorff).
    """
    said: dict[str, dict[int, int]] = defaultdict(dict)
    for vote in votes:
        if vote.verdict != "skip":
            said[vote.ballot.annotator][vote.ballot.comparison.id] = _SAID.index(vote.verdict)
    annotators = sorted(said)
    tallies: dict[int, Counter[int]] = defaultdict(Counter)
    for answers in said.values():
        for comparison, answer in answers.items():
            tallies[comparison][answer] += 1
    shared = {comparison: tally for comparison, tally in tallies.items() if tally.total() > 1}
    fleiss, fleiss_comparisons, fleiss_votes = _fleiss(list(shared.values()))
    return Agreement(
        pairs=[
            kappa
            for one, other in itertools.combinations(annotators, 2)
            if (kappa := _cohen(one, other, said[one], said[other]))["comparisons"]
        ],
        fleiss=fleiss,
        fleiss_comparisons=fleiss_comparisons,
        fleiss_votes=fleiss_votes,
        alpha=_alpha(list(shared.values())),
        comparisons=len(shared),
    )


def judge_agreement(votes: Sequence[Vote]) -> list[JudgeAgreement]:
    """Agreement of every judge that scored the replies with the votes that decided, best first."""
    shares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for vote in votes:
        if vote.verdict not in ("first", "second"):
            continue
        comparison = vote.ballot.comparison
        prompt = json.dumps(comparison.prompt, sort_keys=True)
        first, second = comparison.replies
        for judge in first.scores.keys() & second.scores.keys():
            one, other = first.scores[judge], second.scores[judge]
            if one is None or other is None or not (math.isfinite(one) and math.isfinite(other)):
                continue
            right = 0.5 if one == other else float((one > other) == (vote.verdict == "first"))
            shares[judge][prompt].append(right)
    result = []
    for judge, by_prompt in shares.items():
        share_N = np.array([np.mean(of_prompt) for of_prompt in by_prompt.values()])
        result.append(
            JudgeAgreement(
                judge=judge, rate=float(share_N.mean()), rate_ci=share_interval(share_N),
                votes=sum(map(len, by_prompt.values())), prompts=len(share_N),
            )
        )  # fmt: skip
    return sorted(result, key=lambda each: (-each["rate"], each["judge"]))


def _cohen(one: str, other: str, first: dict[int, int], second: dict[int, int]) -> Kappa:
    both = sorted(first.keys() & second.keys())
    answers = [first[comparison] for comparison in both], [second[comparison] for comparison in both]
    varied = len({*answers[0], *answers[1]}) > 1
    kappa = float(cohen_kappa_score(*answers)) if varied else None
    return Kappa(annotators=[one, other], kappa=kappa, comparisons=len(both))


def _fleiss(tallies: Sequence[Counter[int]]) -> tuple[float | None, int, int]:
    """Fleiss' κ over the comparisons with the most common number of votes, their number, and that number."""
    numbers = Counter(tally.total() for tally in tallies)
    if not numbers:
        return None, 0, 0
    number, comparisons = max(numbers.items(), key=lambda item: (item[1], item[0]))
    table = _table([tally for tally in tallies if tally.total() == number])
    if (table.sum(axis=0) > 0).sum() < 2:
        return None, comparisons, number
    return float(fleiss_kappa(table)), comparisons, number


def _alpha(tallies: Sequence[Counter[int]]) -> float | None:
    table = _table(tallies)
    if not len(table) or (table.sum(axis=0) > 0).sum() < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        alpha = float(krippendorff.alpha(value_counts=table, level_of_measurement="nominal"))
    return alpha if math.isfinite(alpha) else None


def _table(tallies: Sequence[Counter[int]]) -> np.ndarray:
    """How many annotators gave each answer, (comparisons, answers)."""
    return np.array([[tally[answer] for answer in range(len(_SAID))] for tally in tallies], dtype=int)
