"""Sampled completions -> paired comparisons of policies.

Nothing here depends on which rows are compared, so a comparison within a group of prompts is the same call on fewer
rows. A judge either scores each completion or is asked which of two is better; from `judgement` on both are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import numpy as np

from rlhf.evaluation.samples import Row, as_array, completion_values, scores
from rlhf.evaluation.stats import (
    Floats,
    finite_mean,
    holm,
    length_controlled_win_rate,
    mean_interval,
    mean_per_prompt,
    pair_differences,
    pair_wins,
    paired_p_value,
    share_interval,
)
from rlhf.workflow import BASE, is_base

Verdict = Literal["better", "worse", "no difference"]

MIN_PROMPTS = 6
"""Fewest prompts a difference can be shown on. With five, all of one sign is still chance at 6% (2 * 0.5**5), while a
bootstrap, which cannot see beyond its few values, would call it certain."""
ALPHA = 0.05
"""Chance of one false difference or more among the comparisons that are read together, where there is none."""
OTHER = "other"
"""The group of the prompts whose own is too small, or that have none."""


class Comparison(TypedDict):
    """One policy against one baseline, by one judge; an entry of `comparisons` in report.json.

    Means and intervals are over prompts; null where there is nothing to compute them from.
    """

    policy: str
    """The policy."""
    baseline: str
    """The policy that it is compared with."""
    judge: str
    """Who or what scored the completions."""
    policy_mean: float | None
    """Mean score of the policy's completions, over the prompts that count; null for a judge of pairs."""
    baseline_mean: float | None
    """The same of the baseline."""
    mean_difference: float | None
    """policy_mean - baseline_mean; for a judge of pairs 2 win_rate - 1, wins less losses as a share."""
    difference_ci: list[float] | None
    """Its 95% interval, low and high."""
    win_rate: float | None
    """Share of pairs of completions that the policy wins, ties half."""
    win_rate_ci: list[float] | None
    """Its 95% interval."""
    win_rate_length_controlled: float | None
    """The win rate at equal length, by a model (`stats.length_controlled_win_rate`)."""
    win_rate_length_controlled_ci: list[float] | None
    """Its 95% interval."""
    p_value: float | None
    """Of the mean difference, two-sided, by flipping signs of prompts (`stats.paired_p_value`)."""
    p_adjusted: float | None
    """The same after Holm's correction for `n_comparisons`."""
    n_comparisons: int
    """Comparisons read together that have a p-value: all judges and pairs of one call of `compare_policies`."""
    kl: float | None
    """Mean KL of the policy to its reference, nats a completion."""
    mean_length: float | None
    """Mean length of the policy's completions, tokens."""
    baseline_mean_length: float | None
    """The same of the baseline."""
    n: int
    """Prompts that count: both sides have a scored completion."""
    left_out: int
    """Prompts that do not."""
    verdict: Verdict
    """A difference where the interval of the mean difference excludes zero, and p_adjusted is below `ALPHA`."""
    corrected: bool
    """The interval alone would have shown a difference, p_adjusted does not: with so many comparisons it may be
    chance."""
    doubted: bool
    """Whether the judge is a reward model that is not shown to be right more often than chance and length are."""


class GroupComparison(Comparison):
    """A comparison within one group of prompts; an entry of `groups` in report.json."""

    group: str


C = TypeVar("C", bound=Comparison)


class Judgement(NamedTuple):
    """What one judge says of two policies; NaN where it says nothing. K pairs of completions of a prompt."""

    difference_P: Floats
    """Policy minus baseline: of their mean scores, or wins less losses as a share."""
    wins_PK: Floats
    """1 where the policy's completion is better, 0 where it is worse, 0.5 for a tie, or a share between."""
    longer_PK: Floats
    """By how many tokens the policy's completion is longer."""
    policy_P: Floats
    """Mean score of the policy; NaN for a judge of pairs."""
    baseline_P: Floats
    of_pairs: bool
    """Whether the judge compares two completions, and scores none."""


def judgement(rows: Sequence[Row], policy: str, baseline: str, judge: str) -> Judgement:
    """What a judge, of completions or of pairs, says of two policies on each prompt.

    A judge is one of pairs where a row has `preferences` of it. It then compared sample s with sample s; a judge of
    completions compares every sample with every sample. Preferences that were noted as "BASELINE vs POLICY" are turned.
    """
    tokens = [completion_values(rows, name, "tokens") for name in (policy, baseline)]
    if not any(judge in row.get("preferences", {}) for row in rows):
        ours_PS, theirs_PS = (scores(rows, name, judge) for name in (policy, baseline))
        ours_P, theirs_P = mean_per_prompt(ours_PS), mean_per_prompt(theirs_PS)
        wins_PK = pair_wins(ours_PS, theirs_PS)
        return Judgement(ours_P - theirs_P, wins_PK, pair_differences(*tokens), ours_P, theirs_P, of_pairs=False)
    wins_PK = _preferences(rows, policy, baseline, judge)
    longer_PK = np.full_like(wins_PK, np.nan)
    shared = min(wins_PK.shape[1], *(values_PS.shape[1] for values_PS in tokens))
    longer_PK[:, :shared] = tokens[0][:, :shared] - tokens[1][:, :shared]
    no_scores_P = np.full(len(rows), np.nan)
    return Judgement(2 * mean_per_prompt(wins_PK) - 1, wins_PK, longer_PK, no_scores_P, no_scores_P, of_pairs=True)


def _preferences(rows: Sequence[Row], policy: str, baseline: str, judge: str) -> Floats:
    """Shares in which the policy's sample beat the baseline's, as an array (P, K)."""
    shares = []
    for row in rows:
        pairs = row.get("preferences", {}).get(judge, {})
        if f"{policy} vs {baseline}" in pairs:
            shares.append(pairs[f"{policy} vs {baseline}"])
        else:
            shares.append([None if share is None else 1 - share for share in pairs.get(f"{baseline} vs {policy}", [])])
    return as_array(shares)


def comparison_pairs(policies: Sequence[str], parents: Mapping[str, str]) -> list[tuple[str, str]]:
    """(policy, baseline): every trained policy against its parent, then against `base`, each pair once."""
    trained = [policy for policy in policies if not is_base(policy)]
    pairs = [(policy, baseline) for policy in trained for baseline in (parents.get(policy), BASE)]
    known = [(policy, baseline) for policy, baseline in pairs if baseline in policies and baseline != policy]
    return list(dict.fromkeys(known))  # type: ignore[arg-type]  # a baseline in `policies` is not None


def verdict_of(interval: Sequence[float] | None, n: int) -> Verdict:
    """What an interval of a mean difference over n prompts shows: "no difference" where it covers zero, or n < 6."""
    if interval is None or n < MIN_PROMPTS:
        return "no difference"
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "no difference"


def compare(rows: Sequence[Row], policy: str, baseline: str, judge: str) -> Comparison:
    """Compare two policies on the same prompts by one judge, as the only comparison there is.

    The difference of a prompt is between the two means over its samples; a prompt on which one side has no scored
    completion is left out and counted. Intervals are over prompts: of a difference by bootstrap (`stats.bootstrap_ci`),
    of a win rate `stats.share_interval`, and of wins less losses by a judge of pairs what follows from that.
    Comparisons that are read together belong through `correct`, as `compare_policies` does.
    """
    judged = judgement(rows, policy, baseline, judge)
    kept_P = np.isfinite(judged.difference_P)
    difference_P, wins_PK = judged.difference_P[kept_P], judged.wins_PK[kept_P]
    controlled, controlled_ci = length_controlled_win_rate(wins_PK, judged.longer_PK[kept_P])
    wins_P = mean_per_prompt(wins_PK)
    rate_ci = share_interval(wins_P)
    comparison = Comparison(
        policy=policy,
        baseline=baseline,
        judge=judge,
        policy_mean=finite_mean(judged.policy_P[kept_P]),
        baseline_mean=finite_mean(judged.baseline_P[kept_P]),
        mean_difference=finite_mean(difference_P),
        difference_ci=[2 * end - 1 for end in rate_ci] if rate_ci and judged.of_pairs else mean_interval(difference_P),
        win_rate=finite_mean(wins_P),
        win_rate_ci=rate_ci,
        win_rate_length_controlled=_none_if_nan(controlled),
        win_rate_length_controlled_ci=None if math.isnan(controlled_ci[0]) else list(controlled_ci),
        p_value=_none_if_nan(paired_p_value(difference_P)),
        p_adjusted=None,
        n_comparisons=0,
        kl=finite_mean(mean_per_prompt(completion_values(rows, policy, "kl"))),
        mean_length=finite_mean(mean_per_prompt(completion_values(rows, policy, "tokens"))),
        baseline_mean_length=finite_mean(mean_per_prompt(completion_values(rows, baseline, "tokens"))),
        n=int(kept_P.sum()),
        left_out=int((~kept_P).sum()),
        verdict="no difference",
        corrected=False,
        doubted=False,
    )
    return correct([comparison])[0]


def shown_alone(comparisons: Sequence[C]) -> tuple[list[Verdict], list[float | None]]:
    """What each comparison shows by its interval, and its p-value."""
    verdicts = [verdict_of(row["difference_ci"], row["n"]) for row in comparisons]
    return verdicts, [row["p_value"] for row in comparisons]


class Decision(NamedTuple):
    """What several comparisons that are read together leave of one of them; fields as in `Comparison`."""

    verdict: Verdict
    p_adjusted: float | None
    n_comparisons: int
    corrected: bool


def decide(
    alone: Sequence[Verdict], p_values: Sequence[float | None], at_least: Sequence[float] | float = 0.0
) -> list[Decision]:
    """Decide comparisons that are read together, with Holm's correction for how many they are.

    Args:
        alone: What each shows by its interval.
        p_values: Of each; None where it has none, and then it does not count.
        at_least: Least value of each corrected p-value.
    """
    p_N = np.array([math.nan if p is None else p for p in p_values], dtype=np.float64)
    adjusted = np.maximum(holm(p_N), at_least)
    counted = int(np.isfinite(adjusted).sum())
    decisions = []
    for verdict, p in zip(alone, adjusted, strict=True):
        corrected = verdict != "no difference" and not p < ALPHA
        decisions.append(Decision("no difference" if corrected else verdict, _none_if_nan(p), counted, corrected))
    return decisions


def decided(row: C, decision: Decision) -> C:
    """A copy of a comparison with what was decided of it."""
    copy = row.copy()
    copy["verdict"], copy["p_adjusted"], copy["n_comparisons"], copy["corrected"] = decision
    return copy


def correct(comparisons: Sequence[C]) -> list[C]:
    """Copies of comparisons that are read together, decided by `decide`."""
    decisions = decide(*shown_alone(comparisons))
    return [decided(row, decision) for row, decision in zip(comparisons, decisions, strict=True)]


def compare_policies(
    rows: Sequence[Row], policies: Sequence[str], judges: Sequence[str], parents: Mapping[str, str]
) -> list[Comparison]:
    """Every policy against its parent and against the base, by every judge; corrected for how many these are.

    Args:
        rows: Lines of samples.jsonl.
        policies: Names as in `Row.replies`.
        judges: Names as in `SampledCompletion.scores` or `Row.preferences`.
        parents: Policy -> the policy it was trained from.
    """
    pairs = comparison_pairs(policies, parents)
    return correct([compare(rows, policy, baseline, judge) for policy, baseline in pairs for judge in judges])


def compare_groups(
    rows: Sequence[Row],
    policies: Sequence[str],
    judges: Sequence[str],
    parents: Mapping[str, str],
    group_of: Callable[[Row], Any],
) -> list[GroupComparison]:
    """The comparisons of `compare_policies` within each group of prompts; corrected for all groups together.

    They are a family of their own: the comparisons over all prompts are not corrected for having been looked into.

    Args:
        rows: Lines of samples.jsonl.
        policies: Names as in `Row.replies`.
        judges: Names as in `SampledCompletion.scores` or `Row.preferences`.
        parents: Policy -> the policy it was trained from.
        group_of: Group of a row, written as text; None puts it into `OTHER`, as does a group of fewer than
            `MIN_PROMPTS` prompts. `lambda row: row["columns"].get("topic")` groups by a column.

    Returns:
        Largest group first, `OTHER` last; nothing where all prompts are one group.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        group = group_of(row)
        groups.setdefault(OTHER if group is None else str(group), []).append(row)
    rest = [name for name, members in groups.items() if len(members) < MIN_PROMPTS and name != OTHER]
    for name in rest:
        groups.setdefault(OTHER, []).extend(groups.pop(name))
    if len(groups) < 2:
        return []
    comparisons = [
        GroupComparison(group=name, **compare(members, policy, baseline, judge))
        for name, members in sorted(groups.items(), key=lambda item: (item[0] == OTHER, -len(item[1])))
        for policy, baseline in comparison_pairs(policies, parents)
        for judge in judges
    ]
    return correct(comparisons)


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
