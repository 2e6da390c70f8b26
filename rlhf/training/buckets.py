"""Which rows make a step, and which of them go through the model together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import BatchRebalanceSampler


class StepBuckets(BatchRebalanceSampler):
    """Batches of about as many tokens each, cut from the rows of a step in order of length.

    The rows of each step are those of plain shuffling with the same seed, so nothing that is learned changes: a step's
    rows are sorted by length and cut into `accumulation` buckets, whose budget is their share of the step's tokens.
    Long rows come few at a time and short ones many, which bounds memory; in a bucket every process gets as many rows,
    of like lengths, so that none waits for another. The order is a function of seed and epoch alone: each epoch is
    shuffled anew, a resumed run goes on where it stopped, and a step's rows are the same over any number of processes.

    Transformers' own sampler, which this replaces, gives processes different numbers of rows, and TRL's trainers gather
    metrics row by row; its `Trainer` takes a batch sampler of this class alone.

    Args:
        lengths: Tokens of each row.
        step_rows: Rows of a step, over all processes.
        processes: How many there are.
        accumulation: Batches of a step on each process.
        seed: Of the shuffling.
        rank: This process.
        drop_last: Whether rows that fill no batch of a last step are left out, as a data loader leaves them out.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        step_rows: int,
        processes: int = 1,
        accumulation: int = 1,
        seed: int = 0,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(
            list(lengths), step_rows, dp_size=processes, grad_accum=accumulation, seed=seed, rank=rank,
            drop_last=drop_last,
        )  # fmt: skip

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for begin in range(0, len(order), self.effective_batch_size):
            rows = order[begin : begin + self.effective_batch_size]
            rows = rows[: self._kept(len(rows))]
            fill = -len(rows) % self.dp_size
            yield from self.batches([*rows, *(order * fill)[:fill]])

    def __len__(self) -> int:
        return self.num_full_batches * self.grad_accum + self._slots(self._kept(self.remainder))

    def batches(self, rows: Sequence[int]) -> list[list[int]]:
        """What one process does of a step, one list of rows for each batch, long rows first.

        Args:
            rows: The step's rows, a multiple of the number of processes.
        """
        ordered = sorted(rows, key=lambda row: (-self.lengths[row], row))
        ranks = self.dp_size
        rounds = [ordered[at : at + ranks] for at in range(0, len(ordered), ranks)]
        # back and forth, so that not the same process has the longer row each time
        mine = [turn[self.rank] if number % 2 == 0 else turn[-1 - self.rank] for number, turn in enumerate(rounds)]
        tokens = [sum(self.lengths[row] for row in turn) for turn in rounds]
        ends = cuts(tokens, self._slots(len(rows)))
        return [mine[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def _kept(self, rows: int) -> int:
        """How many of a step's rows take part."""
        batch = self.effective_batch_size // self.grad_accum
        return rows - rows % batch if self.drop_last else rows

    def _slots(self, rows: int) -> int:
        """How many batches a step of this many rows has."""
        return min(self.grad_accum, -(-rows // self.dp_size))


def cuts(tokens: Sequence[int], parts: int) -> list[int]:
    """Where to cut a list into parts, none empty, whose sums are near their share: the end of each part."""
    ends, done, left = [], 0, sum(tokens)
    for part in range(parts, 0, -1):
        last = len(tokens) - part + 1  # the parts to come need one each
        end, taken = done + 1, tokens[done]
        while end < last and taken + tokens[end] / 2 <= left / part:
            taken += tokens[end]
            end += 1
        end = len(tokens) if part == 1 else end
        ends.append(end)
        left -= sum(tokens[done:end])
        done = end
    return ends


class ResumedEpoch(TrainerCallback):
    """Tells the sampler which epoch a resumed training stands in.

    accelerate's `skip_first_batches` wraps the batch sampler of that epoch, and on several processes nobody's
    `set_epoch` reaches through all the wrappers: the rest of the epoch would have the rows of the first one's order.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Set the epoch of every sampler behind the data loader."""
        set_epoch(train_dataloader, int(state.epoch or 0))


class EpochSeeded(Sampler):
    """A sampler whose shuffling seed and epoch decide, so that a resumed epoch has its order.

    Args:
        sampler: Draws from its attribute `generator`, or where that is None from torch's.
        seed: Of the shuffling.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)


def set_epoch(loader: Any, epoch: int) -> None:
    """Set the epoch of every sampler behind a data loader, however it is wrapped."""
    queue = [loader]
    while queue:
        sampler = queue.pop()
        if isinstance(sampler, Sampler) and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        queue += filter(None, (getattr(sampler, name, None) for name in ("batch_sampler", "sampler")))


def row_lengths(rows: Dataset) -> list[int]:
    """Tokens of each row: of all its columns of token ids together."""
    table = rows.with_format("arrow")[:]
    columns = [name for name in table.column_names if name.endswith("_ids")]
    lengths = [pc.list_value_length(table[name]).to_pylist() for name in columns]
    return [sum(row) for row in zip(*lengths, strict=True)]
