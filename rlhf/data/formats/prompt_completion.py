"""TRL's prompt-completion: a prompt and the completion to imitate, plain or as messages."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Demonstration

NAME = "prompt_completion"
COLUMNS = ("prompt", "completion")
BEFORE = ("prompt_only",)


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has a prompt and a completion."""
    return _columns.has(row, *COLUMNS)


def parse(row: dict[str, Any], origin: str) -> Demonstration:
    """The row as a demonstration."""
    prompt = _columns.text_or_messages(row, "prompt", origin)
    completion = _columns.same_kind(prompt, row, "completion", origin)
    return Demonstration(prompt, completion, _columns.rest(row, *COLUMNS), origin)
