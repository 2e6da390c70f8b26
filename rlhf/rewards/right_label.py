"""Whether a completion names the right class, and the F1 of the classes it names where several are right at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.rewards.text import label_set, right_labels


def right_label(
    prompts: Sequence[Text], completions: Sequence[Text], column: str = "label", **columns: Any
) -> list[float | None]:
    """1 if a completion is the right class's name, else 0; where the column holds a list, 1 if all its names match.

    Args:
        prompts: Not read.
        completions: B completions, text or messages: a class's name, or several joined by ", " in any order.
        column: The column that holds the right class, or the list of those that are right together.
        columns: The data's columns, a value per completion.

    Returns:
        B scores; None without a label. An empty list is a label: that no class is right.
    """
    return [
        None if right is None else float(label_set(completion) == right)
        for completion, right in zip(completions, right_labels(columns, column, len(completions)), strict=True)
    ]


def label_f1(
    prompts: Sequence[Text], completions: Sequence[Text], column: str = "label", **columns: Any
) -> list[float | None]:
    """F1 of the classes that a completion names against those that are right, 2 |A ∩ R| / (|A| + |R|).

    It is 1 where none is named and none is right. With a single class it is `right_label`.

    Args:
        prompts: Not read.
        completions: B completions, text or messages: names joined by ", " in any order.
        column: The column that holds the right class, or the list of those that are right together.
        columns: The data's columns, a value per completion.

    Returns:
        B scores from 0 to 1; None without a label.

    Source: the example-based F1 of Zhang and Zhou, "A Review on Multi-Label Learning Algorithms", 2014, section 2.2.
    """
    return [
        None if right is None else _f1(label_set(completion), right)
        for completion, right in zip(completions, right_labels(columns, column, len(completions)), strict=True)
    ]


def _f1(answered: frozenset[str], right: frozenset[str]) -> float:
    both = len(answered) + len(right)
    return 2 * len(answered & right) / both if both else 1.0
