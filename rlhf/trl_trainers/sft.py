"""TRL's SFTTrainer with what saves time, and its settings with those of kinds of policy that are no language models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import trl
from torch.utils.data import DataLoader
from transformers import Trainer

from rlhf.policies.completion import row_seed
from rlhf.training.trainer import ResumableTrainer
from rlhf.trl_trainers.speedups import FasterTrainer


@dataclass
class SFTSettings(trl.SFTConfig):
    """TRL's settings, and those of classifiers."""

    class_weights: str | None = None
    """How much each class weighs in a classifier's loss: `balanced` weighs a class by n / (classes × its rows), so that
    a rare class counts as much as a frequent one; null weighs each row alike."""
    extra_answers: dict[str, float] | None = None
    """Answers of a classifier that are no class of the data, such as `{hand_over: 0.1}` to a person, and on which share
    of the least sure rows it starts to give each. Demonstrations teach nothing about them; online training with a cost
    matrix learns when they pay. It learns nothing of an answer that is never given: usually 0.05 to 0.3."""
    augment: list[str] | None = None
    """Changes that training batches of a classifier get, by name (`rlhf.data.augment`), so that it learns what leaves a
    class as it is: `shift` and `noise` of images, `word_dropout` of texts."""


class AugmentingTrainer(ResumableTrainer, Trainer):
    """transformers' trainer, whose training batches may be made in another way than those of evaluation.

    They are made when their step begins, from a seed that step and process decide. Made by the data loader, which works
    ahead, they would depend on what was drawn before, and a resumed run would draw other changes.

    Args:
        *args: Of `transformers.Trainer`.
        training_collator: Makes them; None takes `data_collator`.
        **options: Of `transformers.Trainer`.
    """

    def __init__(self, *args: Any, training_collator: Callable[[list[Any]], Any] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._training_collator = training_collator

    def get_train_dataloader(self) -> DataLoader:
        """The training batches, as lists of rows where a collator of their own makes them."""
        evaluation = self.data_collator
        self.data_collator = evaluation if self._training_collator is None else cast(Any, list)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = evaluation

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of a step."""
        batches = epoch_iterator if self._training_collator is None else self._made(epoch_iterator)
        return super().get_batch_samples(batches, num_batches, device)

    def _made(self, batches: Iterator[list[Any]]) -> Iterator[Any]:
        assert self._training_collator is not None
        for number, rows in enumerate(batches):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(
                    row_seed(self.args.seed, "batch", self.state.global_step, number, self.args.process_index)
                )
                batch = self._training_collator(rows)
            yield batch


class SFTTrainer(FasterTrainer, trl.SFTTrainer):
    """TRL's trainer, whose head runs only where a label is, and which runs rows of like length together."""

    token_loss = True
