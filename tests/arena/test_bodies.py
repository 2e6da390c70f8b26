"""A and B on the page, first and second in the store."""

import pytest

from rlhf.arena.bodies import VoteBody, has_visible, said
from rlhf.data.votes import Ballot, Comparison, Reply


@pytest.mark.parametrize(
    ("swapped", "shown", "kept"),
    [(False, "a", "first"), (False, "b", "second"), (True, "a", "second"), (True, "b", "first"), (True, "tie", "tie"),
     (False, "neither", "neither"), (True, "skip", "skip")],
)  # fmt: skip
def test_sides(swapped, shown, kept):
    comparison = Comparison(1, "hello", (Reply("sft", "one"), Reply("dpo", "two")), {}, "file", None, {})
    ballot = Ballot(1, comparison, "ann", swapped, 0.0)
    body = VoteBody(ballot=1, verdict=shown, good_a=True, good_b=False)
    assert body.verdict_on(ballot) == kept
    assert said(kept, swapped) == shown
    assert body.good_on(ballot) == ((False, True) if swapped else (True, False))


@pytest.mark.parametrize(
    ("text", "seen"),
    [("a", True), ("?", True), ("\U0001f642", True), ("\u4f60", True), ("", False), (" \n", False),
     ("\u200b\u200d\ufeff", False), ("\u3164\uffa0\u115f", False), ("\u2800", False), ("\ufe0f\u034f", False),
     ("\u202e.", True)],
)  # fmt: skip
def test_what_can_be_seen(text, seen):
    assert has_visible(text) == seen
