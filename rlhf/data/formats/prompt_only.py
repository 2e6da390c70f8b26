"""TRL's prompt-only: something to reply to."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Prompt

NAME = "prompt_only"
COLUMNS = ("prompt",)


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has a prompt; formats with a reply beside it are asked before."""
    return _columns.is_text(row.get("prompt")) or _columns.is_messages(row.get("prompt"))


def parse(row: dict[str, Any], origin: str) -> Prompt:
    """The row as a prompt."""
    return Prompt(_columns.text_or_messages(row, "prompt", origin), _columns.rest(row, *COLUMNS), origin)
