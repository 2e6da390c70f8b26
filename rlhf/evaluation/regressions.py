"""Whether a policy got worse on what it must not lose, from the values that `retain` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlhf.evaluation.compare import Comparison, compare, comparison_pairs, correct

RETAINED = "retained.jsonl"
Measure = Literal["log-likelihood", "score"]


class Lost(Comparison):
    """A policy against what it came from on one set; an entry of `retained` in report.json.

    `judge` is the set's name; a score is the log-likelihood of a row (nats/token) or a judge's score of a greedy reply.
    """

    measure: Measure


def compare_retained(
    rows: Sequence[Mapping[str, Any]], policies: Sequence[str], parents: Mapping[str, str]
) -> list[Lost]:
    """Every policy against its parent and the base on every set, corrected for all of these together.

    Args:
        rows: Lines of `retained.jsonl`.
        policies: Names as in the rows' `values`.
        parents: Policy -> the policy it was trained from.
    """
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        sets.setdefault(row["set"], []).append(row)
    found = []
    for name, members in sets.items():
        replies = [
            {"replies": {policy: [{"scores": {name: value}}] for policy, value in row["values"].items()}}
            for row in members
        ]
        for policy, baseline in comparison_pairs(policies, parents):
            found.append(Lost(measure=members[0]["measure"], **compare(replies, policy, baseline, name)))
    return correct(found)
