"""TRL's language modelling: plain text, all of it learned."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Demonstration

NAME = "text"
COLUMNS = ("text",)


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has text."""
    return _columns.is_text(row.get("text"))


def parse(row: dict[str, Any], origin: str) -> Demonstration:
    """The row as a demonstration without a prompt."""
    return Demonstration("", _columns.text(row, "text", origin), _columns.rest(row, *COLUMNS), origin)
