"""A and B on the page, first and second in the store."""

import pytest

from rlhf.arena.bodies import VoteBody, said
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
