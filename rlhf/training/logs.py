"""What is seen of a training while it runs: `metrics.jsonl`, lines of progress, a bar."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainingArguments

from rlhf.durable import written_whole
from rlhf.errors import Incident

_INTERVAL = 30.0
"""Seconds between lines of progress."""


class MetricsFile(TrainerCallback):
    """Writes one JSON object a logging step to `metrics.jsonl`, on the main process."""

    def __init__(self, stage: str, path: Path) -> None:
        self.stage, self.path = stage, path

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append a step's metrics.

        Raises:
            Incident: The loss on the held-out rows is not finite.
        """
        if logs and not math.isfinite(logs.get("eval_loss", 0.0)):
            raise Incident(
                f"stages.{self.stage}: eval_loss is {logs['eval_loss']} at step {state.global_step}: the run has "
                "diverged; lower learning_rate"
            )
        if state.is_world_process_zero and logs:
            row = {"step": state.global_step, **logs}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def keep_through(path: Path, step: int) -> None:
    """Drop from a file, whose lines have a `step`, what an interrupted run wrote after the resumed checkpoint.

    A summary of the whole training, and an evaluation behind it, are of its last step too, and are written again.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if step and path.is_file() else []
    kept = itertools.takewhile(lambda line: _step(line) <= step, lines)
    with written_whole(path) as whole:
        whole.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step(line: str) -> float:
    """The step of a line; a summary and a line that was cut short, by a full disk say, come after all others."""
    try:
        row = json.loads(line)
    except ValueError:
        return math.inf
    return math.inf if "train_loss" in row else row["step"]


class ProgressLines(TrainerCallback):
    """A line now and then where no terminal shows a bar: in a file, in CI, behind a scheduler."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.first_step, self.started, self.due = 0, 0.0, 0.0

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where and when training starts."""
        self.first_step, self.started = state.global_step, time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Say how far training is, how well it goes and how long it will take."""
        now, done = time.monotonic(), state.global_step - self.first_step
        last = state.global_step == state.max_steps
        if not state.is_world_process_zero or not logs or "loss" not in logs or (now < self.due and not last):
            return
        self.due = now + _INTERVAL
        left = timedelta(seconds=round((now - self.started) / max(1, done) * (state.max_steps - state.global_step)))
        line = f"{self.stage}: step {state.global_step}/{state.max_steps}, loss {logs['loss']:.4f}, {left} left"
        with contextlib.suppress(BrokenPipeError):  # whoever read the lines has left; training goes on
            print(line, file=sys.stderr, flush=True)


class ProgressBar(ProgressCallback):
    """The trainer's own bar with the loss beside it, instead of a dictionary a line."""

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show the newest loss."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")
