"""How long the rows of a stage are: read from its prepared data, or assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.workload import Pass

MOST_ROWS = 20_000
"""Rows that are looked at; of a larger set evenly spaced ones."""
_IGNORED = -100


@dataclass(frozen=True)
class Row:
    """Tokens of a row: what its sequences begin with alike, and of each the rest."""

    shared: int
    tails: tuple[int, ...]
    labelled: int
    """Positions, over all sequences, at which a token is predicted in training."""

    @property
    def folded(self) -> int:
        """Tokens with what is shared once."""
        return self.shared + sum(self.tails)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence by itself."""
        return [self.shared + tail for tail in self.tails]


@dataclass(frozen=True)
class Rows:
    """The rows of a set."""

    rows: Sequence[Row]
    """Some of them, where there are many."""
    count: int
    """How many there are."""
    measured: bool = True
    """Whether they were read; else their lengths are assumed."""


@dataclass(frozen=True)
class RowLengths:
    """Lengths of a set's rows whose tokens are not written yet."""

    prompts: Sequence[int]
    """Tokens of the prompts of some rows."""
    replies: Sequence[int]
    """Tokens of the reply to each; of a pair, of the longer one."""
    trained: int
    """How many rows are trained on."""
    held_out: int
    """How many are not."""

    def rows(self, passing: Pass) -> Rows:
        """The rows as a pass takes them."""
        count, sides = self.held_out if passing.held_out else self.trained, len(passing.sequences)
        if passing.writes:
            rows = [Row(0, (prompt,), 0) for prompt in self.prompts]
        else:
            lengths = zip(self.prompts, self.replies, strict=True)
            rows = [Row(prompt, (reply,) * sides, sides * reply) for prompt, reply in lengths]
        return Rows(rows, count, measured=False)


def assumed(length: int, sequences: int, count: int = 1000) -> Rows:
    """Rows of one length each, nothing shared."""
    return Rows([Row(0, (length,) * sequences, length * sequences)] * count, count, measured=False)


def read_rows(folder: Path, sequences: Sequence[Sequence[str]]) -> Rows | None:
    """The rows of a side of a prepared set.

    Args:
        folder: `train/` or `eval/` of it.
        sequences: Of each sequence of a row the columns that it consists of.

    Returns:
        The rows; None where there are no such columns.
    """
    from datasets import Dataset

    file = folder / "data.arrow"
    if not file.is_file():
        return None
    data = Dataset.from_file(str(file))
    names = {name for columns in sequences for name in columns}
    if not names <= set(data.column_names):
        return None
    step = max(1, -(-len(data) // MOST_ROWS))
    some = data.select(range(0, len(data), step)).select_columns(sorted(names | ({"labels"} & set(data.column_names))))
    return Rows([row_of(row, sequences) for row in some], len(data))


def row_of(row: dict[str, Any], sequences: Sequence[Sequence[str]]) -> Row:
    """The lengths of a row of token ids."""
    from rlhf.data.prefix import common_prefix_length

    whole = [[token for name in columns for token in row[name]] for columns in sequences]
    shared = common_prefix_length(min(whole), max(whole)) if len(whole) > 1 else 0
    if "labels" in row:
        labelled = sum(label != _IGNORED for label in row["labels"])
    else:
        labelled = sum(len(row[columns[-1]]) for columns in sequences)
    return Row(shared, tuple(len(ids) - shared for ids in whole), labelled)
