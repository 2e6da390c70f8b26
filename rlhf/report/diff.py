"""What changed from one completion to another, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
_ALIKE = 0.5
"""Share of words in common below which two texts are two texts, and not one that was changed."""
_MOST_WORDS = 2000
"""The search for common words takes time with the square of their number."""


class Piece(NamedTuple):
    """A stretch of words that both texts have, or only one of the two."""

    kind: Literal["same", "ins", "del"]
    text: str


def word_diff(before: str, after: str) -> list[Piece] | None:
    """The pieces that turn one text into another.

    The pieces that are not deleted, in their order, are `after`, white space included; those that are not inserted have
    the words and marks of `before`. Words count as equal whatever white space follows them.

    Args:
        before: A text.
        after: What became of it.

    Returns:
        None where the two have so little in common that marks would hide the text, or are very long.
    """
    old, new = _WORD.findall(before), _WORD.findall(after)
    if max(len(old), len(new)) > _MOST_WORDS:
        return None
    matcher = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False)
    if matcher.ratio() < _ALIKE:
        return None
    pieces: list[Piece] = []
    steps = matcher.get_opcodes()
    for place, (kind, i, j, k, m) in enumerate(steps):
        removed, kept = "".join(old[i:j]), "".join(new[k:m])
        # A comma that two changes have in common is chance: they read as one change.
        between = 0 < place < len(steps) - 1 and not re.search(r"\w", kept)
        if kind == "equal" and not between:
            pieces.append(Piece("same", kept))
            continue
        _append(pieces, "del", removed)
        _append(pieces, "ins", kept)
    return pieces


def _append(pieces: list[Piece], kind: Literal["ins", "del"], text: str) -> None:
    """Add to the change that the pieces end with: what was deleted, then what was inserted."""
    if not text:
        return
    start = len(pieces)
    while start and pieces[start - 1].kind != "same":
        start -= 1
    change = {piece.kind: piece.text for piece in pieces[start:]}
    change[kind] = change.get(kind, "") + text
    pieces[start:] = [Piece(name, change[name]) for name in ("del", "ins") if name in change]
