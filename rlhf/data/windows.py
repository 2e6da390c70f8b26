"""A question and a context as windows of tokens, and the places of answers in them.

A model of limited length reads a context that is too long through windows that overlap, as in BERT's script for SQuAD
(Devlin et al., 2019). Each token of the context belongs to the one window in which it has most context; an answer is
looked for in the window that its first token belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf.data.records import Unusable
from rlhf.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OVERLAP = 128
"""Tokens of the context that two neighbouring windows share; at most half of what a window has room for."""


class Window(NamedTuple):
    """The question and a part of the context, as token ids."""

    ids: list[int]
    types: list[int]
    """The tokenizer's `token_type_ids`; none where it gives none."""
    none: int
    """Place of the CLS token, which stands for no answer."""
    place: int
    """Place of the window's first token of the context."""
    first: int
    """Which token of the context that is."""
    size: int
    """Tokens of the context in the window."""


class Windowed(NamedTuple):
    """A question about a context."""

    windows: list[Window]
    offsets: list[tuple[int, int]]
    """Characters of the context, [start, end), of each of its tokens."""


class WindowCodec:
    """Turns a question and a context into windows.

    Args:
        tokenizer: A fast one, as only these know the characters of a token; it frames two texts with a CLS token.
        max_length: Most tokens of a window; None for no limit.

    Raises:
        UserError: The tokenizer is another.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> None:
        name = tokenizer.name_or_path
        if not tokenizer.is_fast:
            raise UserError(
                f"{name}: a span policy takes a fast tokenizer, whose tokens know their characters; this one is slow"
            )
        if tokenizer.cls_token_id not in tokenizer("a", "b")["input_ids"]:
            raise UserError(
                f"{name}: a span policy takes a tokenizer that puts a CLS token, which stands for no answer, before a "
                "question and a context; this one puts none"
            )
        self.tokenizer, self.max_length = tokenizer, max_length

    def windows(self, question: str, context: str) -> Windowed:
        """The windows of a question about a context, from the context's start to its end.

        Raises:
            Unusable: The context has no token, or the question leaves no room for it.
        """
        whole: Any = self.tokenizer(question, context, return_offsets_mapping=True, verbose=False)
        parts = whole.sequence_ids(0)
        if 1 not in parts:
            raise Unusable("context without a token")
        start = parts.index(1)
        stop = start + parts.count(1)
        ids, types = whole["input_ids"], whole.get("token_type_ids") or []
        room = stop - start if self.max_length is None else self.max_length - (len(ids) - (stop - start))
        if room < 1:
            raise Unusable("question leaves no room for the context within max_length")
        windows = []
        for first, last in window_ranges(stop - start, room, min(OVERLAP, room // 2)):
            cut = [slice(0, start), slice(start + first, start + last), slice(stop, None)]
            own, kinds = ([value for part in cut for value in values[part]] for values in (ids, types))
            windows.append(Window(own, kinds, own.index(self.tokenizer.cls_token_id), start, first, last - first))
        return Windowed(windows, [(begin, end) for begin, end in whole["offset_mapping"][start:stop]])


def window_ranges(tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """The tokens of a context that each window has, [first, last), until all are covered.

    Args:
        tokens: Of the context.
        room: Tokens of the context in a window.
        overlap: Tokens that neighbours share; less than `room`.
    """
    ranges = [(0, min(room, tokens))]
    while ranges[-1][1] < tokens:
        first = ranges[-1][0] + room - overlap
        ranges.append((first, min(first + room, tokens)))
    return ranges


def own_tokens(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens that belong to each window: those that have most context there, [first, last).

    The context of a token in a window is the smaller number of tokens on a side of it. Of two windows that overlap, the
    first has the tokens up to the middle of the overlap, and the second those after it.
    """
    bounds = [(second[0] + first[1]) // 2 for first, second in pairwise(ranges)]
    return list(zip([ranges[0][0], *bounds], [*bounds, ranges[-1][1]], strict=True))


def tokens_of(span: tuple[int, int], offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The tokens that cover a span of characters, the first and the last.

    Args:
        span: Characters [start, end).
        offsets: Of each token, in order.

    Raises:
        Unusable: No token lies in it.
    """
    inside = [index for index, (begin, end) in enumerate(offsets) if begin < span[1] and end > span[0]]
    if not inside:
        raise Unusable("answer without a token")
    return inside[0], inside[-1]


def text_of(context: str, offsets: Sequence[tuple[int, int]], first: int, last: int) -> str:
    """The characters of the context from one token to another, without white space around them."""
    return context[offsets[first][0] : offsets[last][1]].strip()
