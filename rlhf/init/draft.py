"""What the settings of a project follow from: files, model, choice, and how the rows of a step are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.init.choose import Choice, File
from rlhf.init.look import Lengths
from rlhf.init.model import ModelFacts
from rlhf.init.write import Line
from rlhf.preflight import RowLengths

_HELD_OUT_ROWS = 300
_STEPS_AN_EPOCH, _SMALLEST, _LARGEST = 60, 8, 32
"""Optimizer steps that an epoch should have at least, and bounds of the rows of a step."""
_ROLLOUT = 64
"""Completions of a rollout."""
EVALUATE, REPLIES = "evaluate", 64
"""The comparison, and the replies that it samples at once where memory suffices."""


@dataclass(frozen=True)
class Batch:
    """How the rows of an optimizer step are cut."""

    rows: int
    """Rows of a step."""
    at_once: int
    """Rows computed at once; the others of a step are accumulated."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of being kept."""
    sampling: int | None = None
    """Replies that ppo samples at once; None for the usual number."""
    evaluating: int | None = None
    """Held-out rows computed at once; None for the usual number."""
    why: str = ""
    """How much of the machine's memory it takes."""
    time: str = ""
    """How long the stage will take, as far as arithmetic tells."""

    @property
    def lines(self) -> tuple[Line, ...]:
        """The settings of a stage."""
        times = self.rows // self.at_once
        counted = f"{self.rows} rows a step" if times == 1 else f"{times} × {self.at_once} = {self.rows} rows a step"
        lines = [Line("per_device_train_batch_size", self.at_once, self.why or "rows computed at once")]
        lines.append(Line("gradient_accumulation_steps", times, counted))
        if self.checkpointing:
            lines.append(
                Line("gradient_checkpointing", True, "activations are computed again: a third slower, far less memory")
            )
        fits = "fewer at once than usual, so that they fit"
        if self.sampling is not None:
            lines.append(Line("sampling_batch_size", self.sampling, f"replies, {fits}"))
        if self.evaluating is not None:
            lines.append(Line("per_device_eval_batch_size", self.evaluating, f"held-out rows, {fits}"))
        return tuple(lines)


@dataclass(frozen=True)
class Draft:
    """All that the settings follow from."""

    name: str
    files: tuple[File, ...]
    model: ModelFacts
    choice: Choice
    adapter: bool
    """Whether LoRA is trained; else all weights."""
    dtype: str | None = None
    """Type of the weights, where it is not the usual one."""
    limit: int | None = None
    """Rows of each file that are used at most."""

    def lengths(self, stage: str) -> Lengths:
        """The lengths of the rows of a stage."""
        return Lengths.joined(file.lengths for file in self.rows(stage))

    def row_lengths(self, stage: str) -> RowLengths:
        """The lengths of the rows of a stage, as the estimate of its time takes them."""
        lengths, files = self.lengths(stage), self.rows(stage)
        most = self.model.context or max(lengths.whole, default=0)
        both = zip(lengths.whole, lengths.replies, strict=True)
        prompts = [max(0, min(whole, most) - reply) for whole, reply in both]
        held_out = round(held_out_share(files) * self.count(stage))
        return RowLengths(prompts, lengths.replies, self.count(stage) - held_out, held_out)

    def rows(self, stage: str) -> tuple[File, ...]:
        """The files that a stage trains on."""
        sets = {
            "sft": ("demonstrations",), "kto": ("feedback", "preferences"),
            "ppo": ("rollouts", "preferences", "feedback", "demonstrations"),
        }.get(stage, ("preferences",))  # fmt: skip
        return next((self.choice.sets[name] for name in sets if name in self.choice.sets), ())

    def count(self, stage: str) -> int:
        """Rows that a stage trains on, those held out included."""
        used = sum(file.facts.used for file in self.rows(stage))
        return 2 * used if stage == "kto" and "feedback" not in self.choice.sets else used


def first_batches(draft: Draft) -> dict[str, Batch]:
    """The rows of a step of each stage, all at once as long as the memory is not looked at.

    Of `evaluate` they are the replies that are sampled at once; a classifier samples none.
    """
    samples = {} if draft.choice.policy in ("label", "span") else {EVALUATE: Batch(REPLIES, REPLIES)}
    return {stage: _first_batch(draft, stage) for stage in draft.choice.stages} | samples


def _first_batch(draft: Draft, stage: str) -> Batch:
    if stage == "ppo":
        return Batch(_ROLLOUT, _ROLLOUT)
    wanted = max(1, draft.count(stage) // _STEPS_AN_EPOCH)
    rows = min(_LARGEST, max(_SMALLEST, 2 ** int(math.log2(wanted))))
    return Batch(rows, rows)


def held_out_share(files: Sequence[File]) -> float:
    """The share of rows that no stage trains on: a tenth, and of many rows so much that there are enough."""
    rows = sum(file.facts.used for file in files)
    return 0.1 if rows < 10 * _HELD_OUT_ROWS else max(0.01, round(_HELD_OUT_ROWS / rows, 2))
