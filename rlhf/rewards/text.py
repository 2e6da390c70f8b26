"""What reward functions read: the text of a completion, and its reference from a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.records import Text


def completion_text(completion: Text) -> str:
    """A completion as text: itself, or the content of its last message; empty if there is no message."""
    if isinstance(completion, str):
        return completion
    return (completion[-1]["content"] or "") if completion else ""


def references(columns: Mapping[str, Sequence[Any]], column: str, count: int) -> list[str | None]:
    """The reference of each completion.

    Args:
        columns: The data's columns, a value per completion: text, a number or messages.
        column: Name of the column that holds the references.
        count: Number of completions.

    Returns:
        A text per completion; None if the column is absent, null or blank.
    """
    values = columns.get(column, [None] * count)
    texts = [completion_text(value) if isinstance(value, str | list) else value for value in values]
    return [None if text is None or not str(text).strip() else str(text) for text in texts]
