"""What the reward functions read: the text of a completion, and a reference for it from a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.records import Text


def text_of(completion: Text) -> str:
    """A completion as text: itself, or the content of its last message; nothing where there is no message."""
    if isinstance(completion, str):
        return completion
    return (completion[-1]["content"] or "") if completion else ""


def references(columns: Mapping[str, Sequence[Any]], column: str, count: int) -> list[str | None]:
    """The reference of each completion.

    Args:
        columns: The data's columns, one value a completion: text, a number or messages.
        column: The one that holds the references.
        count: Number of completions.

    Returns:
        Text, or None where the column is absent, null or blank.
    """
    values = columns.get(column, [None] * count)
    texts = [text_of(value) if isinstance(value, str | list) else value for value in values]
    return [None if text is None or not str(text).strip() else str(text) for text in texts]
