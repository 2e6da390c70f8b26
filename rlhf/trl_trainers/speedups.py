"""What spares TRL's trainers computing anything twice: a mixin in front of theirs."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from rlhf import processes
from rlhf.data.tokenize import IGNORED
from rlhf.models.device import reads_weights
from rlhf.prefix_sharing import support
from rlhf.prefix_sharing.fold import fold
from rlhf.training.buckets import StepBuckets, row_lengths
from rlhf.training.trainer import ResumableTrainer
from rlhf.trl_trainers.fused_head import head_where_labelled, small_tiles
from rlhf.workflow import StageContext

if TYPE_CHECKING:

    class _Base(ResumableTrainer):
        """What all of TRL's trainers have."""

        model: Any
        _metrics: dict[str, defaultdict[str, list[float]]]

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any: ...
else:
    _Base = ResumableTrainer


@dataclass(frozen=True)
class Speedups:
    """What saves time, each by itself; none changes a number beyond rounding.

    With `buckets` the numbers are those of a step in one batch: where TRL's means give each batch of a step, or of an
    evaluation, the same weight, here each row counts the same, and each token where the mean is one over tokens. The
    smallest and largest reward that TRL logs are means of each batch's extremes, and so depend on the batches.
    """

    fold: bool = True
    """What the sequences of a group share is computed once."""
    head: bool = True
    """The language-model head runs only where a label is."""
    buckets: bool = True
    """Rows of like length go through the model together."""


NO_SPEEDUPS = Speedups(fold=False, head=False, buckets=False)
"""Everything as TRL does it."""


def speedups_of(context: StageContext) -> Speedups:
    """Those of a stage: all, or with `fold: false` none."""
    return Speedups() if context.settings.fold else NO_SPEEDUPS


class FasterTrainer(_Base):
    """In front of a trainer of TRL's: `class DPOTrainer(FasterTrainer, trl.DPOTrainer)`.

    Args:
        speedups: Which are used.
    """

    group_size = 1
    """Rows of a batch that begin alike: 2 for pairs."""
    token_loss = False
    """Whether the loss is a mean over the step's tokens by itself; else it is one over the rows of each batch."""
    fused_head = True
    """Whether the trainer has TRL's fused head."""

    def __init__(self, *args: Any, speedups: Speedups = Speedups(), **kwargs: Any) -> None:  # frozen
        self.speedups = speedups
        self._patched = False
        self._rows_a_batch: float | None = None
        self._weights: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
        super().__init__(*args, **kwargs)
        self.patch_models()

    def patch_models(self) -> None:
        """Fold the models and restrict their heads, once: before the first forward pass, which may be in `__init__`."""
        if self._patched:
            return
        self._patched = True
        for model in (self.model, getattr(self, "ref_model", None)):
            if model is None:
                continue
            model = self.accelerator.unwrap_model(model)  # DeepSpeed's engine is around a reference already
            if self.speedups.head and self.fused_head:
                head_where_labelled(model)
            if self.speedups.fold or self.speedups.buckets:
                size = self.group_size if self.speedups.fold else 1
                folded = fold(model, size, by_length=self.speedups.buckets, tried=reads_weights())
                reason = processes.broadcast(folded.reason)
                if folded.reason is None and reason is not None:
                    folded.remove()
                folded.reason = reason
                if self._has_router_loss() and folded.reason is None:
                    folded.say(support.ROUTERS)
                    folded.remove()  # the reference's too: rounded otherwise, it would not tie

    def separable(self) -> bool:
        """Whether the loss of a batch is the mean of losses that each row has by itself."""
        return True

    def by_rows(self) -> bool:
        """Whether batches of a step may have any number of rows, each of which then counts the same.

        Not with a router's loss, which depends on which tokens go through it together.
        """
        return self.speedups.buckets and not self._has_router_loss() and self.separable()

    def _has_router_loss(self) -> bool:
        """Whether TRL adds the load-balancing loss of a mixture of experts."""
        return getattr(self, "aux_loss_enabled", False)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        batches = args.gradient_accumulation_steps * args.world_size
        plain = args.train_sampling_strategy != "random" or getattr(args, "packing", False)
        if plain or batches == 1 or not isinstance(rows, Dataset) or not self.by_rows():
            return super()._get_train_sampler(train_dataset)
        return StepBuckets(
            row_lengths(rows), args.train_batch_size * batches, args.world_size, args.gradient_accumulation_steps,
            seed=args.seed if args.data_seed is None else args.data_seed, rank=args.process_index,
            drop_last=args.dataloader_drop_last,
        )  # fmt: skip

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of a step, which need not have the same number of rows."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._rows_a_batch = sum(len(batch["input_ids"]) for batch in batches) / max(1, len(batches))
        return batches, items

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """A forward and a backward pass of a batch, in which TRL's head has the tiles that fit a CPU."""
        with small_tiles(self.model) if self.speedups.head else contextlib.nullcontext():
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss; in training weighted by the batch's rows, so that the step's loss is the mean over its rows."""
        by_rows = self.by_rows()
        if by_rows:
            self._weights["train" if self.model.training else "eval"].append(self._metric_weights(inputs))
        rows = len(inputs["input_ids"])
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not by_rows or self.token_loss or not self.model.training or self._rows_a_batch is None:
            return loss
        weight = rows / self._rows_a_batch
        return (loss[0] * weight, loss[1]) if return_outputs else loss * weight

    def _metric_weights(self, inputs: dict[str, Any]) -> dict[str, float]:
        """What a batch counts in the mean of each metric: its tokens where that is one over tokens, else its rows."""
        tokens: dict[str, torch.Tensor] = {}
        if "labels" in inputs:
            count = (inputs["labels"][:, 1:] != IGNORED).sum()
            tokens = {"entropy": count, "mean_token_accuracy": count}
        elif "completion_mask" in inputs:
            chosen, rejected = (side.sum() for side in inputs["completion_mask"][:, 1:].chunk(2))
            tokens = {"logits/chosen": chosen, "logits/rejected": rejected,
                      "entropy": chosen + rejected, "mean_token_accuracy": chosen}  # fmt: skip
        counts = self.accelerator.reduce(torch.stack(list(tokens.values()))).tolist() if tokens else []
        return {"": len(inputs["input_ids"]), **dict(zip(tokens, counts, strict=True))}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL logs the mean of its metrics over batches; here each batch counts by its rows, or by its tokens."""
        mode = "train" if self.model.training else "eval"
        batches = self._weights.pop(mode, [])
        for name, values in self._metrics[mode].items():
            weights = [batch.get(name, batch[""]) for batch in batches]
            if len(values) == len(weights) and (total := sum(weights)):
                values[:] = [
                    value * weight * len(values) / total for value, weight in zip(values, weights, strict=True)
                ]
        super().log(logs, start_time)
