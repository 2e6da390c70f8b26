"""How varied completions are. Pure functions on text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

REPETITION_N = 4
"""Words in the n-grams of `repetition`, as in its source."""
_TOKEN = re.compile(r"\w+|[^\w\s]")


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of some texts taken together.

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models". An n-gram is n
    neighbours of one text, among its words and its marks, upper and lower case apart. The more texts and the longer,
    the lower: compare only like numbers of completions of like length. A language that is written without spaces has
    few words, and a high value.

    Args:
        texts: Completions.
        n: Length of the n-grams, at least 1.

    Returns:
        A share between 0 and 1; NaN where there is no n-gram.

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n-grams of {n} words")
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(text: str) -> float:
    """Share of a completion's 4-grams that stood in it before: 1 - distinct / all (Welleck et al. 2020, seq-rep-4).

    Deviation from "Neural Text Generation with Unlikelihood Training": words (see `distinct_n`) instead of a model's
    tokens, so that policies with different tokenizers compare.

    Args:
        text: One completion.

    Returns:
        0 where nothing repeats, close to 1 for one word over and over; NaN for fewer than four words.
    """
    return 1 - distinct_n([text], REPETITION_N)


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = _TOKEN.findall(text)
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))
