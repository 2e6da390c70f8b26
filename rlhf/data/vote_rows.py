"""Votes as data: pairs for preferences, edits for demonstrations, thumbs for feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.data.records import as_completion
from rlhf.data.votes import Vote


def preference_rows(votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """Votes as preference pairs: a comparison that more annotators decided one way than the other is a pair.

    Returns:
        Rows with `prompt`, `chosen`, `rejected`, `votes_for` and `votes_against`, and the prompt's other columns.
    """
    tallies: dict[int, list[int]] = {}
    comparisons = {}
    for vote in votes:
        comparison = vote.ballot.comparison
        comparisons[comparison.id] = comparison
        tally = tallies.setdefault(comparison.id, [0, 0])
        if vote.verdict in ("first", "second"):
            tally[vote.verdict == "second"] += 1
    rows = []
    for number, (first, second) in tallies.items():
        if first == second:
            continue
        comparison = comparisons[number]
        texts = [as_completion(comparison.prompt, reply.text) for reply in comparison.replies]
        chosen, rejected = texts if first > second else reversed(texts)
        rows.append(
            {
                **comparison.columns, "prompt": comparison.prompt, "chosen": chosen, "rejected": rejected,
                "votes_for": max(first, second), "votes_against": min(first, second),
            }
        )  # fmt: skip
    return rows


def demonstration_rows(votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """What annotators wrote should have been said, as demonstrations: `prompt` and `completion`."""
    return [
        {
            **vote.ballot.comparison.columns,
            "prompt": vote.ballot.comparison.prompt,
            "completion": as_completion(vote.ballot.comparison.prompt, vote.edit),
        }
        for vote in votes
        if vote.edit
    ]


def feedback_rows(votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """Replies that annotators judged by themselves: `prompt`, `completion` and `label`.

    Those of a vote that both are bad are bad; a thumb up or down says so of one.
    """
    rows = []
    for vote in votes:
        comparison = vote.ballot.comparison
        for reply, good in zip(comparison.replies, vote.good, strict=True):
            label = False if vote.verdict == "neither" else good
            if label is not None:
                completion = as_completion(comparison.prompt, reply.text)
                rows.append(
                    {**comparison.columns, "prompt": comparison.prompt, "completion": completion, "label": label}
                )
    return rows


ROWS = {"preferences": preference_rows, "demonstrations": demonstration_rows, "feedback": feedback_rows}
"""Votes as the rows of a set of `data:`."""
