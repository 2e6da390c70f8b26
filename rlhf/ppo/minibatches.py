"""A rollout as the Trainer's data: collected when an epoch begins, then cut into minibatches and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from rlhf.policies.completion import row_seed

if TYPE_CHECKING:
    from rlhf.ppo.trainer import PPOTrainer


class RolloutLoader:
    """What the Trainer takes for a data loader: iterating collects a rollout and yields its micro-batches."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer, self.epoch = trainer, 0
        self.dataset = trainer.prompts

    def __len__(self) -> int:
        args = self.trainer.args
        return args.steps_per_rollout * args.gradient_accumulation_steps

    def set_epoch(self, epoch: int) -> None:
        """The Trainer's epoch is the number of the rollout."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        trainer, args = self.trainer, self.trainer.args
        rollout = trainer.collect_rollout(self.epoch)
        numbers = trainer.prompts_of(self.epoch)
        count = len(rollout.inputs)
        for pass_index in range(args.num_ppo_epochs):
            seed = row_seed(args.seed, "minibatches", self.epoch, pass_index)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
            for begin in range(0, count, count // args.num_mini_batches):
                rows = rollout.by_length(order[begin : begin + count // args.num_mini_batches], trainer.policy)
                tokens = trainer.reduce(rollout.mask_BT[rows].sum().double()).item()
                for first in range(0, len(rows), args.per_device_train_batch_size):
                    chosen = rows[first : first + args.per_device_train_batch_size]
                    prompts = [numbers[row // rollout.samples] for row in chosen]
                    yield {"micro_batch": rollout.micro_batch(chosen, tokens, trainer.policy), "rows": prompts}
