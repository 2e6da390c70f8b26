"""What perturbed inputs (`evaluate.perturb`) cost each policy, and whether one is better than another on them too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from rlhf.evaluation.compare import Comparison, Verdict, compare, comparison_pairs, correct, decide, verdict_of
from rlhf.evaluation.perturb import PerturbedPrompt
from rlhf.evaluation.samples import Row, scores
from rlhf.evaluation.stats import finite_mean, mean_interval, mean_per_prompt, paired_p_value

PERTURBED = "perturbed.jsonl"


class PerturbedRow(Row):
    """A line of `perturbed.jsonl`: a row of samples.jsonl with its prompt perturbed, and the answers to that.

    Judges see the prompt as it was before: what is right has not changed.
    """

    perturbation: str


class PerturbedComparison(Comparison):
    """Two policies on inputs perturbed alike; an entry of `robustness.comparisons` in report.json."""

    perturbation: str


class Change(TypedDict):
    """What a perturbation changes of a policy's score; an entry of `robustness.changes` in report.json."""

    policy: str
    """The policy."""
    perturbation: str
    """What was done to the inputs."""
    judge: str
    """Who or what scored the completions."""
    clean_mean: float | None
    """Mean score on the inputs as they are, over the prompts that count."""
    perturbed_mean: float | None
    """The same on the inputs perturbed."""
    mean_difference: float | None
    """perturbed_mean - clean_mean."""
    difference_ci: list[float] | None
    """Its 95% interval, over prompts."""
    p_value: float | None
    """Of the mean difference, two-sided, as in `Comparison`."""
    p_adjusted: float | None
    """After Holm's correction for all changes."""
    n: int
    """Prompts that the perturbation applies to, with a score before and after."""
    verdict: Verdict
    """As in `Comparison`."""


class Robustness(TypedDict):
    """Policies on perturbed inputs; `robustness` in report.json."""

    changes: list[Change]
    """Each policy on perturbed inputs beside itself on the inputs as they are."""
    comparisons: list[PerturbedComparison]
    """Corrected for all of these together, apart from those on clean inputs."""


def robustness(
    rows: Sequence[Row],
    perturbed: Sequence[PerturbedRow],
    policies: Sequence[str],
    judges: Sequence[str],
    parents: Mapping[str, str],
) -> Robustness | None:
    """What each perturbation costs each policy by each judge, and every policy against its parent and the base on it.

    Args:
        rows: Lines of samples.jsonl.
        perturbed: Lines of perturbed.jsonl.
        policies: Names as in `Row.replies`.
        judges: Those that score completions.
        parents: Policy -> the policy it was trained from.

    Returns:
        None where nothing was perturbed.
    """
    sets: dict[str, list[PerturbedRow]] = {}
    for row in perturbed:
        sets.setdefault(row["perturbation"], []).append(row)
    if not sets:
        return None
    clean = {row["index"]: row for row in rows}
    comparisons = [
        PerturbedComparison(perturbation=name, **compare(members, policy, baseline, judge))
        for name, members in sets.items()
        for policy, baseline in comparison_pairs(policies, parents)
        for judge in judges
    ]
    changes = [
        _change([clean[row["index"]] for row in members], members, policy, name, judge)
        for name, members in sets.items()
        for policy in policies
        for judge in judges
    ]
    return Robustness(changes=list(_decided(changes)), comparisons=correct(comparisons))


def perturbed_rows(rows: Sequence[Row], prompts: Sequence[PerturbedPrompt]) -> list[PerturbedRow]:
    """The rows of perturbed prompts, which no policy has answered yet.

    Args:
        rows: Those of the prompts as they are.
        prompts: The perturbed ones.
    """
    return [
        PerturbedRow(
            perturbation=name, index=rows[place]["index"], prompt=prompt.prompt, columns=prompt.extra, replies={}
        )
        for name, place, prompt in prompts
    ]


def _change(clean: Sequence[Row], perturbed: Sequence[Row], policy: str, perturbation: str, judge: str) -> Change:
    before_P, after_P = (mean_per_prompt(scores(rows, policy, judge)) for rows in (clean, perturbed))
    difference_P = after_P - before_P
    known_P = difference_P == difference_P
    difference_P = difference_P[known_P]
    return Change(
        policy=policy,
        perturbation=perturbation,
        judge=judge,
        clean_mean=finite_mean(before_P[known_P]),
        perturbed_mean=finite_mean(after_P[known_P]),
        mean_difference=finite_mean(difference_P),
        difference_ci=mean_interval(difference_P),
        p_value=paired_p_value(difference_P) if len(difference_P) else None,
        p_adjusted=None,
        n=len(difference_P),
        verdict="no difference",
    )


def _decided(changes: Sequence[Change]) -> Iterator[Change]:
    """The changes with what is shown of each after correction for all."""
    alone = [verdict_of(change["difference_ci"], change["n"]) for change in changes]
    for change, decision in zip(changes, decide(alone, [change["p_value"] for change in changes]), strict=True):
        yield {**change, "verdict": decision.verdict, "p_adjusted": decision.p_adjusted}
