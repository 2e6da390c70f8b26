"""Votes for tests, made by hand."""

from rlhf.data.votes import Ballot, Comparison, Reply, Vote


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
