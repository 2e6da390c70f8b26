"""Text to text: a document and its summary, or a text and its translation."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Demonstration
from rlhf.errors import UserError

NAME = "text_to_text"
COLUMNS = ("source", "target")

_PAIRS = (COLUMNS, ("document", "summary"), ("input", "target"))


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has one of the pairs of columns, both plain text."""
    return _pair(row) is not None and all(_columns.is_text(row[column]) for column in _pair(row) or ())


def parse(row: dict[str, Any], origin: str) -> Demonstration:
    """The row as a demonstration in plain text."""
    pair = _pair(row)
    if pair is None:
        wanted = ", or ".join(" and ".join(pair) for pair in _PAIRS)
        raise UserError(f"{origin}: expected the columns {wanted} (found: {', '.join(map(str, row)) or 'none'})")
    source, target = (_columns.text(row, column, origin) for column in pair)
    return Demonstration(source, target, _columns.rest(row, *pair), origin)


def _pair(row: dict[str, Any]) -> tuple[str, str] | None:
    """The first pair of columns that the row has."""
    return next((pair for pair in _PAIRS if _columns.has(row, *pair)), None)
