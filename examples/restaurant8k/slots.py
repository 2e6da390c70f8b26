"""Rewards a booking that was written out, such as `people: 2; time: 7 pm`, by the F1 over all its slots."""

from __future__ import annotations

from collections import Counter
from typing import Any


def words(booking: str) -> Counter[tuple[str, str]]:
    """The words of each slot, in lower case; a part without a slot's name has none."""
    parts = (part.partition(": ") for part in booking.lower().split("; "))
    return Counter((slot.strip(), word) for slot, _, value in parts for word in value.split())


def f1(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """F1 of the words, each with its slot: 1 where both name nothing.

    Args:
        prompts: What callers said.
        completions: The bookings that were written.
        columns: `reference` has the right ones.
    """
    scores = []
    for written, right in zip(map(words, completions), map(words, columns["reference"]), strict=True):
        both = (written & right).total()
        scores.append(2 * both / (written.total() + right.total()) if written or right else 1.0)
    return scores


def exact(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """1 where all slots are right and no other is named."""
    pairs = zip(map(words, completions), map(words, columns["reference"]), strict=True)
    return [float(written == right) for written, right in pairs]
