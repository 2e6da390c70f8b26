"""Which policy people prefer: win rates of pairs, and Bradley-Terry ratings of all, from their votes."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

import evalica
import numpy as np

from rlhf.data.votes import Vote
from rlhf.evaluation.stats import Floats, expanded_level, share_interval

_POINTS = 400 / math.log(10)
"""Rating points for a factor e of the odds: 400 for odds of ten to one, as in chess."""
_CENTRE = 1000.0
_RESAMPLES = 1000
_TOLERANCE, _STEPS = 1e-9, 10_000
_WINNERS = {1.0: evalica.Winner.X, 0.5: evalica.Winner.Draw, 0.0: evalica.Winner.Y}


class Outcome(NamedTuple):
    """How a comparison of two policies went, by one annotator."""

    first: str
    second: str
    won: float
    """1 where the first policy's reply is better, 0 where the second's is, 0.5 where neither is."""
    prompt: str
    """What was replied to: votes on the same prompt are not independent."""


class WinRate(TypedDict):
    """How often one policy is preferred to another."""

    policy: str
    """The policy."""
    baseline: str
    """The policy that it is compared with."""
    rate: float
    """Mean over prompts of the share of votes for the policy; a tie counts half."""
    rate_ci: list[float] | None
    """95%; None for fewer than two prompts."""
    votes: int
    """Votes between the two, ties included."""
    prompts: int
    """Prompts that they are on."""


class Rating(TypedDict):
    """How strong a policy is among those that it can be compared with."""

    policy: str
    """Its name."""
    rating: float | None
    """1000 is the mean; 400 more are odds of ten to one. None for a policy that no votes tie to the others."""
    rating_ci: list[float] | None
    """95%, by the bootstrap over prompts; None for fewer than two prompts."""
    votes: int
    """Votes that it took part in."""


def outcomes(votes: Iterable[Vote]) -> list[Outcome]:
    """Votes as outcomes: `tie` and `neither` count half for both, `skip` is left out.

    A comparison of a policy with itself says nothing about policies and is left out.
    """
    won = {"first": 1.0, "second": 0.0, "tie": 0.5, "neither": 0.5}
    rows = []
    for vote in votes:
        comparison = vote.ballot.comparison
        first, second = (reply.policy for reply in comparison.replies)
        if vote.verdict in won and first != second:
            prompt = json.dumps(comparison.prompt, sort_keys=True)
            rows.append(Outcome(first, second, won[vote.verdict], prompt))
    return rows


def win_rates(judged: Sequence[Outcome]) -> list[WinRate]:
    """The win rate of every policy against every other that it met, both ways.

    Votes on one prompt are averaged first, so that a prompt that many annotators judged weighs as much as another.
    """
    shares: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for first, second, won, prompt in judged:
        shares[first, second][prompt].append(won)
        shares[second, first][prompt].append(1 - won)
    rates = []
    for (policy, baseline), by_prompt in sorted(shares.items()):
        share_N = np.array([np.mean(of_prompt) for of_prompt in by_prompt.values()])
        votes = sum(map(len, by_prompt.values()))
        rates.append(
            WinRate(
                policy=policy, baseline=baseline, rate=float(share_N.mean()), rate_ci=share_interval(share_N),
                votes=votes, prompts=len(share_N),
            )
        )  # fmt: skip
    return rates


def ratings(judged: Sequence[Outcome], seed: int = 0) -> list[Rating]:
    """Bradley-Terry ratings: P(i is preferred to j) = 1 / (1 + 10^((r_j - r_i) / 400)), the highest first.

    Each pair of policies that met is given one tie beside its votes, so that a policy that won everything has a finite
    rating. Source: Bradley & Terry (1952), "Rank Analysis of Incomplete Block Designs", fitted by `evalica`.

    Args:
        judged: The outcomes.
        seed: Of the bootstrap.
    """
    names = sorted({name for outcome in judged for name in outcome[:2]})
    tied = _largest_group(names, judged)
    inside = [outcome for outcome in judged if outcome.first in tied]
    prompts = sorted({outcome.prompt for outcome in inside})
    kinds = sorted({outcome[:3] for outcome in inside})
    place = {prompt: number for number, prompt in enumerate(prompts)}
    counts_PK = np.zeros((len(prompts), len(kinds)))
    for outcome in inside:
        counts_PK[place[outcome.prompt], kinds.index(outcome[:3])] += 1
    points = dict(zip(tied, _fit(kinds, counts_PK.sum(axis=0), tied), strict=True))
    intervals = dict(zip(tied, _intervals(kinds, counts_PK, tied, seed), strict=True)) if len(prompts) > 1 else {}
    result = [
        Rating(
            policy=name, rating=points.get(name), rating_ci=intervals.get(name),
            votes=sum(name in outcome[:2] for outcome in judged),
        )
        for name in names
    ]  # fmt: skip
    return sorted(result, key=lambda each: (each["rating"] is None, -(each["rating"] or 0.0), each["policy"]))


def _intervals(
    kinds: Sequence[tuple[str, str, float]], counts_PK: Floats, names: Sequence[str], seed: int
) -> list[list[float]]:
    """95% intervals of the ratings: the prompts are drawn again with replacement, with all their votes."""
    count = len(counts_PK)
    rng = np.random.default_rng(seed)
    times_RP = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    draws_RN = np.array([_fit(kinds, weight_K, names) for weight_K in times_RP @ counts_PK])
    outside = (1 - expanded_level(0.95, count)) / 2
    return np.quantile(draws_RN, [outside, 1 - outside], axis=0).T.tolist()


def _fit(kinds: Sequence[tuple[str, str, float]], weight_K: Floats, names: Sequence[str]) -> list[float]:
    """Ratings of these policies, in the order of their names, from kinds of outcomes and how often each happened."""
    pairs = sorted({tuple(sorted(kind[:2])) for kind in kinds})
    weighed = [*zip(kinds, weight_K, strict=True), *(((first, second, 0.5), 1.0) for first, second in pairs)]
    weighed = [(kind, weight) for kind, weight in weighed if weight]
    if not weighed:
        return [_CENTRE] * len(names)
    fitted = evalica.bradley_terry(
        [first for (first, _, _), _ in weighed],
        [second for (_, second, _), _ in weighed],
        [_WINNERS[won] for (_, _, won), _ in weighed],
        weights=[float(weight) for _, weight in weighed],
        tolerance=_TOLERANCE,
        limit=_STEPS,
    )
    logit_N = np.log([fitted.scores[name] for name in names])
    return (_CENTRE + _POINTS * (logit_N - logit_N.mean())).tolist()


def _largest_group(names: Sequence[str], judged: Sequence[Outcome]) -> list[str]:
    """The policies of the largest group that votes tie together, in alphabetical order."""
    groups: list[set[str]] = [{name} for name in names]
    for first, second in {outcome[:2] for outcome in judged}:
        one = next(group for group in groups if first in group)
        other = next(group for group in groups if second in group)
        if one is not other:
            groups.remove(other)
            one |= other
    largest: set[str] = max(groups, key=len, default=set())
    return sorted(largest)


def orders(votes: Sequence[Vote]) -> tuple[float, list[float] | None, int]:
    """How often the reply that was shown first is preferred: 0.5 where order does not matter.

    Returns:
        The share of decided votes, its 95% interval (None for fewer than two votes), and their number.
    """
    decided = [vote for vote in votes if vote.verdict in ("first", "second")]
    shown_first = [(vote.verdict == "first") != vote.ballot.swapped for vote in decided]
    if not decided:
        return math.nan, None, 0
    share_N = np.array(shown_first, dtype=float)
    return float(share_N.mean()), share_interval(share_N), len(decided)
