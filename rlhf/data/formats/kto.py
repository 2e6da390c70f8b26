"""TRL's unpaired preference (KTO): one reply and whether it is good. Read as what it is, never paired up."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Feedback

NAME = "kto"
COLUMNS = ("prompt", "completion", "label")
BEFORE = ("prompt_completion", "prompt_only")


def matches(row: dict[str, Any]) -> bool:
    """Whether a prompt and a completion stand beside a true or false; another label is just a column."""
    label = row.get("label")
    binary = label in (0, 1) or (
        isinstance(label, str) and label.strip().lower() in ("true", "false", "0", "1", "0.0", "1.0")
    )
    return _columns.has(row, "prompt", "completion") and binary


def parse(row: dict[str, Any], origin: str) -> Feedback:
    """The row as binary feedback."""
    prompt = _columns.text_or_messages(row, "prompt", origin)
    completion = _columns.same_kind(prompt, row, "completion", origin)
    label = _columns.boolean(row, "label", origin)
    return Feedback(prompt, completion, label, _columns.rest(row, *COLUMNS), origin)
