"""Which rows go through a model at once: the batches of a pass, as the trainers cut them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlhf.prefix_sharing.cost_model import Cost
from rlhf.preflight.lengths import Row
from rlhf.training.buckets import cuts

_TRIALS = 3
"""Shufflings of the set whose heaviest batches are looked at."""


@dataclass(frozen=True)
class Rectangle:
    """Rows that are padded to one length and computed together."""

    rows: int
    length: int
    shared: bool
    """Whether sequences of a row are kept apart by a mask over all pairs of tokens."""

    @property
    def tokens(self) -> int:
        """Tokens with the padding."""
        return self.rows * self.length


@dataclass(frozen=True)
class Batch:
    """What a forward pass takes: rectangles one after the other, and the positions at which the head runs."""

    rectangles: tuple[Rectangle, ...]
    labelled: int

    @property
    def tokens(self) -> int:
        """Tokens with the padding."""
        return sum(rectangle.tokens for rectangle in self.rectangles)


def laid_out(rows: Sequence[Row], cost: Cost | None, shares: bool, backward: bool) -> Batch:
    """The rectangles of a batch.

    Args:
        rows: Its rows.
        cost: What a rectangle costs the model, by which a batch is cut; None where it is not cut.
        shares: Whether what the sequences of a row share is computed once.
        backward: Whether there is a backward pass.
    """
    labelled = sum(row.labelled for row in rows)
    folds = [shares and _folds(row, cost) for row in rows]
    folded = [row.folded for row, one in zip(rows, folds, strict=True) if one]
    plain = [length for row, one in zip(rows, folds, strict=True) if not one for length in row.lengths]
    rectangles = []
    for lengths, shared in ((plain, False), (folded, True)):
        if not lengths:
            continue
        parts = [range(len(lengths))] if cost is None else cost.cut(lengths, shared, backward)
        rectangles += [Rectangle(len(part), max(lengths[row] for row in part), shared) for part in parts]
    return Batch(tuple(rectangles), labelled)


def _folds(row: Row, cost: Cost | None) -> bool:
    """Whether the sequences of a row share what they begin with: where that is not slower."""
    if not row.shared or len(row.tails) < 2:
        return False
    apart = [] if cost is None else [cost.rows(1, length, shared=False) for length in row.lengths]
    return cost is None or cost.rows(1, row.folded, shared=True) <= sum(apart)


def heaviest(
    rows: Sequence[Row], at_once: int, together: int, layout: Callable[[Sequence[Row]], Batch], by_length: bool
) -> Batch:
    """The batch with the most tokens that a training is likely to meet: of several shufflings, the median.

    Args:
        rows: Of the set.
        at_once: Rows of a batch.
        together: Batches of a step, among which its rows are dealt out by length.
        layout: Makes a batch of rows.
        by_length: Whether the rows of a step are sorted by length; else batches are as they are drawn.
    """
    found = []
    for trial in range(_TRIALS):
        order = random.Random(trial).sample(range(len(rows)), len(rows))
        batches = _drawn([rows[row] for row in order], at_once, together, by_length)
        candidates = sorted(batches, key=lambda batch: -_size(batch))[:8]
        found.append(max((layout(batch) for batch in candidates), key=lambda batch: batch.tokens))
    return sorted(found, key=lambda batch: batch.tokens)[len(found) // 2]


def _size(batch: Sequence[Row]) -> int:
    return sum(row.folded for row in batch)


def _drawn(rows: Sequence[Row], at_once: int, together: int, by_length: bool) -> Iterator[list[Row]]:
    """The batches of an epoch."""
    step = at_once * together
    for begin in range(0, len(rows), step):
        chosen = list(rows[begin : begin + step])
        if not by_length or together == 1:
            yield from (chosen[at : at + at_once] for at in range(0, len(chosen), at_once))
            continue
        ordered = sorted(chosen, key=lambda row: -row.folded)
        ends = cuts([row.folded for row in ordered], min(together, len(ordered)))
        yield from (ordered[first:last] for first, last in zip([0, *ends], ends, strict=False))
