"""Sampled replies -> paired comparisons of policies, and a summary of each policy.

A row is one line of `evaluate/samples.jsonl`: a prompt and, for each policy, its replies with their scores. Nothing
here depends on which rows these are, so a comparison within a group of prompts is the same call on fewer rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from rlhf.evaluation.stats import Floats, bootstrap_ci, mean_per_prompt, win_rate

Row = Mapping[str, Any]
Verdict = Literal["better", "worse", "no difference"]

MIN_PROMPTS = 6
"""Fewest prompts a difference can be shown on. With five, all of one sign is still chance at 6% (2 * 0.5**5), while a
bootstrap, which cannot see beyond its few values, would call it certain."""


class Comparison(TypedDict):
    """One policy against one baseline, by one judge; an entry of `comparisons` in report.json.

    Means and intervals are over prompts; null where there is nothing to compute them from.
    """

    policy: str
    baseline: str
    judge: str
    policy_mean: float | None
    """Mean score of the policy's replies, over the prompts that count."""
    baseline_mean: float | None
    """The same of the baseline."""
    mean_difference: float | None
    """policy_mean - baseline_mean."""
    difference_ci: list[float] | None
    """Its 95% interval, low and high."""
    win_rate: float | None
    """Share of reply pairs the policy wins, ties half."""
    win_rate_ci: list[float] | None
    """Its 95% interval."""
    kl: float | None
    """Mean KL of the policy to its reference, nats a reply."""
    mean_length: float | None
    """Mean length of the policy's replies, tokens."""
    baseline_mean_length: float | None
    """The same of the baseline."""
    n: int
    """Prompts that count: both sides have a scored reply."""
    left_out: int
    """Prompts that do not."""
    verdict: Verdict
    """From the interval of the mean difference."""


class Summary(TypedDict):
    """What one policy is like; an entry of `policies` in report.json. Each quantity is {"mean", "ci", "n"}."""

    policy: str
    scores: dict[str, dict[str, Any]]
    """By judge."""
    length: dict[str, Any]
    """Tokens a reply."""
    finished: dict[str, Any]
    """Share of replies that ended by themselves."""
    kl: dict[str, Any]
    """Nats a reply, to `kl_reference`."""
    kl_reference: str | None


def reply_values(rows: Sequence[Row], policy: str, field: str, judge: str | None = None) -> Floats:
    """One number of each reply as an array.

    Args:
        rows: P rows.
        policy: Whose replies.
        field: `tokens`, `finished`, `kl` or `scores`.
        judge: Which of the scores.

    Returns:
        Array (P, S), S the most samples any prompt has; NaN where there is no such reply or no finite number.
    """
    replies = [row["replies"].get(policy, []) for row in rows]
    values_PS = np.full((len(rows), max(map(len, replies), default=0)), np.nan)
    for p, samples in enumerate(replies):
        for s, sample in enumerate(samples):
            value = sample.get(field)
            if judge is not None:
                value = (value or {}).get(judge)
            if value is not None and math.isfinite(value):
                values_PS[p, s] = value
    return values_PS


def comparison_pairs(policies: Sequence[str], parents: Mapping[str, str]) -> list[tuple[str, str]]:
    """(policy, baseline): every policy against its parent, then against `base`, each pair once."""
    pairs = [(policy, baseline) for policy in policies for baseline in (parents.get(policy), "base")]
    known = [(policy, baseline) for policy, baseline in pairs if baseline in policies and baseline != policy]
    return list(dict.fromkeys(known))  # type: ignore[arg-type]  # a baseline in `policies` is not None


def verdict_of(interval: Sequence[float] | None, n: int) -> Verdict:
    """What an interval of a mean difference over n prompts shows: "no difference" where it covers zero, or n < 6."""
    if interval is None or n < MIN_PROMPTS:
        return "no difference"
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


def compare(rows: Sequence[Row], policy: str, baseline: str, judge: str) -> Comparison:
    """Compare two policies on the same prompts by one judge.

    The difference of a prompt is between the two means over its samples; a prompt on which one side has no scored
    reply is left out and counted. Intervals are by bootstrap over prompts (`stats.bootstrap_ci`).
    """
    ours_PS, theirs_PS = (reply_values(rows, name, "scores", judge) for name in (policy, baseline))
    ours_P, theirs_P = mean_per_prompt(ours_PS), mean_per_prompt(theirs_PS)
    kept_P = np.isfinite(ours_P) & np.isfinite(theirs_P)
    difference_P = (ours_P - theirs_P)[kept_P]
    wins_P = win_rate(ours_PS, theirs_PS)[kept_P]
    interval = _interval(difference_P)
    return Comparison(
        policy=policy,
        baseline=baseline,
        judge=judge,
        policy_mean=_mean(ours_P[kept_P]),
        baseline_mean=_mean(theirs_P[kept_P]),
        mean_difference=_mean(difference_P),
        difference_ci=interval,
        win_rate=_mean(wins_P),
        win_rate_ci=_interval(wins_P),
        kl=_mean(mean_per_prompt(reply_values(rows, policy, "kl"))),
        mean_length=_mean(mean_per_prompt(reply_values(rows, policy, "tokens"))),
        baseline_mean_length=_mean(mean_per_prompt(reply_values(rows, baseline, "tokens"))),
        n=int(kept_P.sum()),
        left_out=int((~kept_P).sum()),
        verdict=verdict_of(interval, int(kept_P.sum())),
    )


def compare_policies(
    rows: Sequence[Row], policies: Sequence[str], judges: Sequence[str], parents: Mapping[str, str]
) -> list[Comparison]:
    """Every policy against its parent and against the base, by every judge.

    Args:
        rows: Lines of samples.jsonl.
        policies: Names as in the rows' `replies`.
        judges: Names as in the replies' `scores`.
        parents: Policy -> the policy it was trained from.
    """
    pairs = comparison_pairs(policies, parents)
    return [compare(rows, policy, baseline, judge) for policy, baseline in pairs for judge in judges]


def summarise(rows: Sequence[Row], policy: str, judges: Sequence[str], kl_reference: str | None = None) -> Summary:
    """Mean and interval, over prompts, of a policy's scores, lengths, endings and KL."""

    def quantity(field: str, judge: str | None = None) -> dict[str, Any]:
        means_P = mean_per_prompt(reply_values(rows, policy, field, judge))
        means_P = means_P[np.isfinite(means_P)]
        return {"mean": _mean(means_P), "ci": _interval(means_P), "n": len(means_P)}

    return Summary(
        policy=policy,
        scores={judge: quantity("scores", judge) for judge in judges},
        length=quantity("tokens"),
        finished=quantity("finished"),
        kl=quantity("kl"),
        kl_reference=kl_reference,
    )


def _mean(values: Floats) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _interval(values: Floats) -> list[float] | None:
    low, high = bootstrap_ci(values)
    return None if math.isnan(low) else [low, high]
