"""What a page sends, checked: types, lengths, nothing else besides."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from rlhf.data.votes import Ballot, Verdict

LONGEST_TEXT = 32_000
"""Most characters of a prompt or an edit."""
LONGEST_REASON = 2_000
_UNSEEN = frozenset("\u115f\u1160\u2800\u3164\uffa0\U0001d159")
"""Letters and symbols without ink: fillers of Hangul, the empty Braille cell, the empty note head."""
Said = Literal["a", "b", "tie", "neither", "skip"]
"""A verdict in terms of what the page shows: `a` is the reply shown first."""


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class NameBody(_Body):
    """Who judges."""

    name: Annotated[str, Field(max_length=1_000)]


class VoteBody(_Body):
    """A vote."""

    ballot: int
    verdict: Said
    good_a: bool | None = None
    good_b: bool | None = None
    edit: Annotated[str, Field(max_length=LONGEST_TEXT)] | None = None
    reason: Annotated[str, Field(max_length=LONGEST_REASON)] | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def verdict_on(self, ballot: Ballot) -> Verdict:
        """The verdict by the replies' places in the comparison."""
        if self.verdict in ("a", "b"):
            return "second" if (self.verdict == "b") != ballot.swapped else "first"
        return self.verdict  # type: ignore[return-value]

    def good_on(self, ballot: Ballot) -> tuple[bool | None, bool | None]:
        """The thumbs by the replies' places in the comparison."""
        return (self.good_b, self.good_a) if ballot.swapped else (self.good_a, self.good_b)


class PromptBody(_Body):
    """A prompt of the annotator's own, or their next turn in a conversation."""

    text: Annotated[str, Field(max_length=LONGEST_TEXT)]
    after: int | None = None
    """The ballot that the conversation goes on from."""
    reply: Literal["a", "b", "edit"] | None = None
    """What was said in it: one of its replies, or what the annotator wrote should have been said."""


def has_visible(text: str) -> bool:
    """Whether a text has a character that can be seen: no space, control, mark alone, or filler."""
    return any(unicodedata.category(letter)[0] in "LNPS" and letter not in _UNSEEN for letter in text)


def said(verdict: Verdict, swapped: bool) -> Said:
    """A verdict in terms of what the page shows."""
    if verdict in ("first", "second"):
        return "b" if (verdict == "second") != swapped else "a"
    return verdict  # type: ignore[return-value]
