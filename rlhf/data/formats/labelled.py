"""Text and its class, or a list of several classes at once: what a classifier is fine-tuned on."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Labelled

NAME = "labelled"
COLUMNS = ("text", "label")
BEFORE = ("text",)


def matches(row: dict[str, Any]) -> bool:
    """Whether text stands beside a label; it may be null in the first row."""
    label = row.get("label", ...)
    return _columns.is_text(row.get("text")) and (label is None or _columns.is_label(label))


def parse(row: dict[str, Any], origin: str) -> Labelled:
    """The row as labelled text."""
    text = _columns.text(row, "text", origin)
    names, several = _columns.labels(row, "label", origin)
    return Labelled(text, names, several, _columns.rest(row, *COLUMNS), origin)
