"""TRL's conversational language modelling: a whole conversation in `messages`."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Demonstration, demonstration_of

NAME = "messages"
COLUMNS = ("messages",)


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has a list of messages and is not a preference pair."""
    return _columns.is_messages(row.get("messages")) and not _columns.has(row, "chosen", "rejected")


def parse(row: dict[str, Any], origin: str) -> Demonstration:
    """The conversation as a demonstration of all its replies."""
    return demonstration_of(_columns.messages(row, "messages", origin), _columns.rest(row, *COLUMNS), origin)
