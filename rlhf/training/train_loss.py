"""The mean loss of a whole training, however often it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainingArguments


class LogAtCheckpoints(TrainerCallback):
    """Has the loss logged with every checkpoint and at the last step.

    So the losses up to a checkpoint can be read as soon as it is there, and those of the last steps are part of the
    mean over all. Add it behind the trainer's own flow, which decides what is saved.
    """

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a log where there will be a checkpoint, or no other step."""
        control.should_log |= control.should_save or control.should_training_stop

    def on_epoch_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The same for checkpoints by epoch."""
        control.should_log |= control.should_save or control.should_training_stop


def mean_train_loss(log_history: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean loss of all steps: sum over logs of (step_k - step_(k-1)) * loss_k / step_K, with step_0 = 0.

    A log's loss is the mean since the log before. `TrainOutput.training_loss` is that of the steps since a resume only.

    Args:
        log_history: The trainer's, restored from the checkpoint where it was resumed; rows without `loss` do not count.

    Returns:
        In the loss's own unit; None where no loss was logged.
    """
    rows = [row for row in log_history if "loss" in row]
    if not rows:
        return None
    starts = [0, *(row["step"] for row in rows[:-1])]
    total = sum(row["loss"] * (row["step"] - start) for row, start in zip(rows, starts, strict=True))
    return float(total / rows[-1]["step"])
