"""HelpSteer3's preferences: a conversation, two replies to it, and by how much which of them is better."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Message, Preference, Unusable

NAME = "helpsteer3"
COLUMNS = ("context", "response1", "response2", "overall_preference")


def matches(row: dict[str, Any]) -> bool:
    """Whether two replies to a list of messages stand beside a preference between them."""
    return _columns.has(row, *COLUMNS) and _columns.is_messages(row["context"])


def parse(row: dict[str, Any], origin: str) -> Preference:
    """The row as a preference: below 0 for the first reply, above 0 for the second.

    How strong it is, 1 to 3, becomes the extra column `strength`.

    Raises:
        Unusable: It is a tie, or there is no preference.
    """
    if _columns.value(row, "overall_preference", origin) in (None, ""):
        raise Unusable("no label")
    preference = _columns.integer(row, "overall_preference", origin)
    if preference == 0:
        raise Unusable("tie")
    replies: list[list[Message]] = [
        [{"role": "assistant", "content": _columns.text(row, column, origin)}] for column in ("response1", "response2")
    ]
    chosen, rejected = replies if preference < 0 else reversed(replies)
    extra = {**_columns.rest(row, *COLUMNS), "strength": abs(preference)}
    return Preference(_columns.messages(row, "context", origin), chosen, rejected, extra, origin)
