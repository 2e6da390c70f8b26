"""Alpaca: an instruction, perhaps an input it is about, and the output."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Demonstration

NAME = "alpaca"
COLUMNS = ("instruction", "output")


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has an instruction and an output."""
    return all(_columns.is_text(row.get(column)) for column in COLUMNS)


def parse(row: dict[str, Any], origin: str) -> Demonstration:
    """The row as a demonstration; the input follows the instruction after a blank line."""
    parts = [_columns.text(row, "instruction", origin)]
    if "input" in row:
        parts.append(_columns.text(row, "input", origin))
    question = "\n\n".join(part for part in parts if part.strip())
    prompt, completion = _columns.conversation(question, _columns.text(row, "output", origin))
    return Demonstration(prompt, completion, _columns.rest(row, "instruction", "input", "output"), origin)
