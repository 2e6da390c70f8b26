"""TRL's SFTTrainer with what saves time, and its settings with those of kinds of policy that are no language models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trl
from torch.utils.data import DataLoader
from transformers import Trainer

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

    Args:
        *args: Of `transformers.Trainer`.
        training_collator: Makes them; None takes `data_collator`.
        **options: Of `transformers.Trainer`.
    """

    def __init__(self, *args: Any, training_collator: Callable[[list[Any]], Any] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._training_collator = training_collator

    def get_train_dataloader(self) -> DataLoader:
        """The training batches."""
        evaluation = self.data_collator
        self.data_collator = self._training_collator or evaluation
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = evaluation


class SFTTrainer(FasterTrainer, trl.SFTTrainer):
    """TRL's trainer, whose head runs only where a label is, and which runs rows of like length together."""

    token_loss = True
