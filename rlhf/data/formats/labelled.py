"""Text and its class, a number, or `neg` and `pos`: what an encoder is fine-tuned on."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Labelled

NAME = "labelled"
COLUMNS = ("text", "label")
BEFORE = ("text",)


def matches(row: dict[str, Any]) -> bool:
    """Whether text stands beside a label that is a class; a label in other words is just a column."""
    return _columns.is_text(row.get("text")) and _columns.class_number(row.get("label")) is not None


def parse(row: dict[str, Any], origin: str) -> Labelled:
    """The row as labelled text."""
    text, content = _columns.text(row, "text", origin), _columns.value(row, "label", origin)
    label = _columns.class_number(content)
    if label is None:
        raise _columns.wrong_type(content, "label", origin, "the number of a class, from 0 on (or neg and pos)")
    return Labelled(text, label, _columns.rest(row, *COLUMNS), origin)
