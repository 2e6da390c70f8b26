"""Votes for tests, made by hand."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf.data.records import Text
from rlhf.data.votes import Ballot, Comparison, Reply, Verdict, Vote, Votes, votes_file


def vote(
    verdict,
    policies=("sft", "dpo"),
    *,
    comparison=1,
    prompt="hello",
    annotator="ann",
    swapped=False,
    scores=({}, {}),
    **more,
):
    """A vote on two replies of these policies."""
    replies = tuple(
        Reply(policy, f"{policy} says", scores=score) for policy, score in zip(policies, scores, strict=True)
    )
    shown = Comparison(comparison, prompt, replies, more.pop("columns", {}), "held out", None, {"temperature": 1.0})
    fields = {"good": (None, None), "edit": None, "reason": None, "seconds": 2.0, "cast_at": 0.0, **more}
    return Vote(Ballot(comparison, shown, annotator, swapped, 0.0), verdict, **fields)


def cast_votes(
    run_dir: Path,
    judged: Iterable[tuple[Text, str, str, Verdict]],
    annotator: str = "Ada",
    edit: str | None = None,
    columns: dict[str, Any] | None = None,
) -> None:
    """Add comparisons to a run, each with a vote: prompt, first reply, second reply, verdict."""
    with Votes(votes_file(run_dir), seed=0) as votes:
        for prompt, first, second, verdict in judged:
            replies = (Reply("sft", first, "a" * 64), Reply("dpo", second, "b" * 64))
            number = votes.add(prompt, replies, sampling={"temperature": 1.0}, columns=columns)
            votes.cast(votes.show(number, annotator), verdict, seconds=2.0, edit=edit)
