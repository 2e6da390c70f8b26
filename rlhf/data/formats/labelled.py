"""Text and its class, as a number: what an encoder is fine-tuned on."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Labelled

NAME = "labelled"
COLUMNS = ("text", "label")
BEFORE = ("text",)


def matches(row: dict[str, Any]) -> bool:
    """Whether text stands beside a label that is a number; a label in words is just a column."""
    label = row.get("label")
    number = isinstance(label, int) or (isinstance(label, str) and label.isdigit())
    return _columns.is_text(row.get("text")) and number


def parse(row: dict[str, Any], origin: str) -> Labelled:
    """The row as labelled text."""
    text, label = _columns.text(row, "text", origin), _columns.integer(row, "label", origin)
    if label < 0:
        raise _columns.wrong_type(label, "label", origin, "0 or more")
    return Labelled(text, label, _columns.rest(row, *COLUMNS), origin)
