"""What a trainer does differently if `models.fsdp` has sharded its model."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from rlhf.models.device import sharded
from rlhf.models.fsdp import average_gradients, fits_whole, gathered, gathered_on_demand
from rlhf.models.shards import is_sharded
from rlhf.training.trainer import ResumableTrainer


class ShardedTrainer(ResumableTrainer):
    """In front of a trainer: leaves a sharded model as it is, without DDP around it; other models train as before.

    A subclass calls `average_gradients` after the last micro-batch of a step, and samples within `free_calls`.
    """

    gathers: bool | None = None
    """Whether every process holds all weights while it samples; None until the free memory has decided it."""
    _serve: Callable[[], None] | None = None
    """Gathers layers for the other processes; None where none of them needs that."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_distributed_loading_by_transformers = is_sharded(self.model)  # transformers' name for: no DDP

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Move a model that is whole; shards are on their device already."""
        if not is_sharded(model):
            super()._move_model_to_device(model, device)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Nothing: `shard` made what is trained equal, and `average_gradients` keeps it so with fewer messages."""

    def average_gradients(self) -> None:
        """Average the gradients of whole trained parameters, which FSDP does not reduce; nothing without sharding."""
        if self.is_distributed_loading_by_transformers:
            average_gradients([weight for weight in self.model.parameters() if weight.requires_grad])

    @contextlib.contextmanager
    def free_calls(self) -> Iterator[None]:
        """Within, each process calls the model as often as it needs; nothing may be trained."""
        if not self.is_distributed_loading_by_transformers:
            yield
            return
        if self.gathers is None:
            self.gathers = fits_whole(self.model, self.args.device)
            if not self.gathers and self.is_world_process_zero():
                print(
                    f"{self.stage}: the whole weights leave too little memory to sample: each layer is gathered for "
                    "every token (gather_for_rollouts)",
                    file=sys.stderr,
                )
        with gathered(self.model) if self.gathers else gathered_on_demand(self.model) as self._serve:
            try:
                yield
            finally:
                self._serve = None

    def serve_other_processes(self) -> None:
        """Gather layers for the other processes within `free_calls`, until all have called this: before they meet."""
        if self._serve is not None:
            self._serve()


def parameter_groups(parameters: Iterable[tuple[nn.Parameter, float, float]]) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, by learning rate and weight decay.

    Whole and sharded parameters are in different groups: a fused update takes only one kind of tensor.

    Args:
        parameters: Each with its learning rate and weight decay; those that are not trained are left out.
    """
    groups: defaultdict[tuple[float, float, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter, rate, decay in parameters:
        if parameter.requires_grad:
            groups[rate, decay, sharded(parameter)].append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay, _), params in groups.items()]
