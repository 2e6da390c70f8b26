"""Whether a policy got worse on the sets of `evaluate.retain`, from the values that `retain` measured.

Apart from `retain`, which loads models: a report is made without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from rlhf.evaluation.compare import Comparison, compare, comparison_pairs, correct
from rlhf.evaluation.samples import Row, SampledCompletion

RETAINED = "retained.jsonl"
Measure = Literal["log-likelihood", "score"]


class RetainedRow(TypedDict):
    """A line of `retained.jsonl`."""

    set: str
    """Name of the set."""
    measure: Measure
    """What the values are."""
    origin: str
    """File and line."""
    values: dict[str, float | None]
    """By policy, more being better; null where there is none."""


class Regression(Comparison):
    """A policy against what it came from on one set; an entry of `retained` in report.json.

    `judge` is the set's name; a score is the log-likelihood of a row (nats/token) or a judge's score of a greedy
    completion. "worse" is a regression.
    """

    measure: Measure


def compare_retained(
    rows: Sequence[RetainedRow], policies: Sequence[str], parents: Mapping[str, str]
) -> list[Regression]:
    """Every policy against its parent and the base on every set, corrected for all of these together.

    Args:
        rows: Lines of `retained.jsonl`.
        policies: Names as in the rows' `values`.
        parents: Policy -> the policy it was trained from.
    """
    sets: dict[str, list[RetainedRow]] = {}
    for row in rows:
        sets.setdefault(row["set"], []).append(row)
    regressions = []
    for name, members in sets.items():
        samples = [_as_sample(index, row, name) for index, row in enumerate(members)]
        for policy, baseline in comparison_pairs(policies, parents):
            comparison = compare(samples, policy, baseline, name)
            regressions.append(Regression(measure=members[0]["measure"], **comparison))
    return correct(regressions)


def _as_sample(index: int, row: RetainedRow, name: str) -> Row:
    """A row as if each policy had given one completion with this score, of which no length is known."""
    completions = {
        policy: [SampledCompletion(text="", tokens=None, finished=True, kl=None, scores={name: value})]
        for policy, value in row["values"].items()
    }
    return Row(index=index, prompt="", columns={}, replies=completions)
