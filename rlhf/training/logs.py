"""What is seen of a training while it runs: `metrics.jsonl`, lines of progress, a bar."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainingArguments

from rlhf import progress
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


class WatchedTraining(TrainerCallback):
    """Tells the process that watches how far a training is, and the numbers that matter for the stage.

    Args:
        shown: Metric -> how it is called (`Stage.shows`).
    """

    def __init__(self, shown: Mapping[str, str]) -> None:
        self.shown = shown
        self.training: progress.Phase | None = None
        self.held_out: progress.Phase | None = None
        self.tokens: float | None = None
        self.newest: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Training begins, at the step of a checkpoint perhaps."""
        self.training = progress.Phase("training", state.max_steps, "steps", state.global_step)
        progress.begin(self.training)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """A step has been taken."""
        if self.training is not None:
            self.training.reach(state.global_step)

    def on_prediction_step(
        self, args: TrainingArguments, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """A batch of held-out rows has been evaluated."""
        if self.held_out is None:
            batches = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self.held_out = progress.Phase("held-out rows", batches, "batches")
            progress.begin(self.held_out)
        self.held_out.update()

    def on_evaluate(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """All have."""
        if self.held_out is not None:
            progress.end(self.held_out)
            self.held_out = None

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Give the newest numbers, and the tokens since the last time."""
        logs = logs or {}
        if state.global_step:  # what is measured in front of the first step would soon be out of date
            self.newest |= {name: float(logs[name]) for name in self.shown if name in logs}
            progress.show({called: self.newest[name] for name, called in self.shown.items() if name in self.newest})
        if (tokens := logs.get("num_tokens")) is not None:
            progress.count_tokens(tokens - (tokens if self.tokens is None else self.tokens))
            self.tokens = tokens

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step has been taken; evaluating and saving follow."""
        if self.training is not None:
            progress.end(self.training)
            self.training = None


def progress_callback(stage: str, shown: Mapping[str, str], disable_tqdm: bool) -> TrainerCallback:
    """What shows how far a training is: to the process that watches, on a terminal, or in lines.

    Args:
        stage: Its name.
        shown: The numbers that matter for it (`Stage.shows`).
        disable_tqdm: Whether no bar can be drawn.
    """
    if progress.watched():
        return WatchedTraining(shown)
    return ProgressLines(stage) if disable_tqdm else ProgressBar()


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
