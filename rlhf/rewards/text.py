"""What reward functions read: the text of a completion, the classes it names, and what a column says is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.records import Text

SEPARATOR = ", "
"""What joins the names of several classes in one completion."""


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


def label_set(completion: Text) -> frozenset[str]:
    """The names of classes in a completion, which `SEPARATOR` joins; an empty completion names none."""
    names = (name.strip() for name in completion_text(completion).split(SEPARATOR))
    return frozenset(name for name in names if name)


def right_labels(columns: Mapping[str, Sequence[Any]], column: str, count: int) -> list[frozenset[str] | None]:
    """What is right for each completion of a policy that answers with names of classes, as `label_set` reads it.

    Args:
        columns: The data's columns, a value per completion: a name, or a list of the names that are right together.
        column: Name of the column that holds the classes.
        count: Number of completions.

    Returns:
        The names, none for an empty list; None if the column is absent, null or blank.
    """
    values = columns.get(column, [None] * count)
    return [
        label_set(SEPARATOR.join(map(str, value)))
        if isinstance(value, list | tuple)
        else None
        if value is None or not str(value).strip()
        else label_set(str(value))
        for value in values
    ]
