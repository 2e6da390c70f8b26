"""TRL's SFTTrainer with what saves time, and its settings with those of kinds of policy that are no language models."""

from __future__ import annotations

from dataclasses import dataclass

import trl

from rlhf.trl_trainers.speedups import FasterTrainer


@dataclass
class SFTSettings(trl.SFTConfig):
    """TRL's settings, and those of classifiers."""

    class_weights: str | None = None
    """How much each class weighs in a classifier's loss: `balanced` weighs a class by n / (classes × its rows), so that
    a rare class counts as much as a frequent one; null weighs each row alike."""
    extra_answers: list[str] | None = None
    """Answers of a classifier that are no class of the data, such as a hand-over to a person. Demonstrations teach
    nothing about them; online training with a cost matrix learns when they pay."""


class SFTTrainer(FasterTrainer, trl.SFTTrainer):
    """TRL's trainer, whose head runs only where a label is, and which runs rows of like length together."""

    token_loss = True
