"""What the trainers share: arguments, data, the metrics file, resuming, and what is saved at the end."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from rlhf.artifacts.open import check_saved
from rlhf.config import trainer_fields
from rlhf.data.prepare import Prepared, iter_records, prepare, source_set
from rlhf.data.records import Encoded, Record
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.adapters import join_adapters, sort_modules
from rlhf.models.device import process_state
from rlhf.models.tokenizer import mark_eos, tokenizer_record
from rlhf.training.buckets import ResumedEpoch
from rlhf.training.defaults import DEFAULTS
from rlhf.training.starting_point import StartingPoint
from rlhf.training.train_loss import LogAtCheckpoints, mean_train_loss
from rlhf.workflow import StageContext, half_for, kind_of, stage_of

T = TypeVar("T", bound=Trainer)
_EVERY = 30.0
"""Seconds between lines of progress."""


@dataclass(frozen=True)
class Ready:
    """A stage with its arguments settled and its data tokenised: all but the model."""

    start: StartingPoint
    args: Any
    data: Prepared

    @property
    def eval_rows(self) -> Dataset | None:
        """Held-out rows, or None where there are none (TRL takes no empty set)."""
        return self.data.eval if len(self.data.eval) else None

    def trainer(self, kind: Callable[..., T], model: Any, **options: Any) -> T:
        """A trainer of this kind with the stage's arguments, rows and tokenizer.

        Args:
            kind: Its class.
            model: What it trains.
            options: What else it takes.
        """
        return kind(
            model,
            args=self.args,
            train_dataset=self.data.train,
            eval_dataset=self.eval_rows,
            processing_class=self.start.tokenizer,
            **options,
        )


def arguments(
    context: StageContext, kind: type[TrainingArguments], start: StartingPoint, defaults: dict[str, Any] | None = None
) -> TrainingArguments:
    """The trainer's arguments: our defaults, the stage's own, then the YAML, then what the pipeline itself decides.

    `max_length` never goes above the positions the model has. What the trainer's own checks refuse, it raises.
    """
    state = process_state()
    given = context.project.stages[context.name].trainer
    fields = {**DEFAULTS, **(defaults or {}), **given}
    on_gpu = state.device.type == "cuda"
    fields.setdefault("bf16", on_gpu and torch.cuda.is_bf16_supported() and not given.get("fp16"))
    fields.setdefault("dataloader_pin_memory", on_gpu)
    fields["use_cpu"] = state.device.type == "cpu"
    for name, annotation in trainer_fields.trainer_fields(kind_of(context.name)).items():
        if annotation.startswith("list[") and isinstance(fields.get(name), str):
            fields[name] = [fields[name]]
    fields.update(output_dir=str(context.directory / "checkpoints"), seed=context.project.stage_seed(context.name))
    args: Any = kind(**fields)
    if start.context_length is not None:
        args.max_length = min(args.max_length or start.context_length, start.context_length)
    return args


def prepared_data(
    context: StageContext,
    start: StartingPoint,
    encode: Callable[[Any], Encoded],
    settings: dict[str, Any],
    keep_columns: bool = False,
    ahead: Callable[[list[Record]], None] | None = None,
) -> Prepared:
    """The stage's dataset, tokenised once (by the main process) and kept in its folder.

    Args:
        context: The stage.
        start: Its tokenizer is part of what identifies the tokenised data.
        encode: Record to columns.
        settings: What else identifies it: limits, kind of columns.
        keep_columns: Whether rewards will read the row's other columns.
        ahead: Work on records to come (`Codec.ahead`).
    """
    role = stage_of(context.name).data
    assert role is not None
    try:
        source_set(context.project, role)
    except UserError as error:
        raise UserError(f"{error}; stages.{context.name} needs it") from None
    half = half_for(context.project, context.name)
    key = json.dumps([tokenizer_record(start.tokenizer), settings, half], sort_keys=True)
    with process_state().main_process_first():
        return prepare(context.project, role, encode, context.directory / "data", keep_columns, key, ahead, half)


class MetricsFile(TrainerCallback):
    """Writes one JSON object a logging step to `metrics.jsonl`, on the main process."""

    def __init__(self, stage: str, path: Path) -> None:
        self.stage, self.path = stage, path

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append a step's metrics.

        Raises:
            UserError: The run has diverged.
        """
        for name in ("loss", "grad_norm", "eval_loss"):
            if logs and name in logs and not math.isfinite(logs[name]):
                raise UserError(
                    f"stages.{self.stage}: {name} is {logs[name]} at step {state.global_step}: the run has diverged; "
                    "lower learning_rate"
                )
        if state.is_world_process_zero and logs:
            row = {"step": state.global_step, **logs}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def keep_through(path: Path, step: int) -> None:
    """Drop from a file, whose lines have a `step`, what an interrupted run wrote after the resumed checkpoint."""
    lines = path.read_text(encoding="utf-8").splitlines() if step and path.is_file() else []
    kept = [line for line in lines if _step(line) <= step]
    whole = path.with_name(path.name + ".new")
    whole.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    whole.replace(path)


def _step(line: str) -> float:
    """The step of a line; a line that was cut short, by a full disk say, comes after all others."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


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
        self.due = now + _EVERY
        left = timedelta(seconds=round((now - self.started) / max(1, done) * (state.max_steps - state.global_step)))
        line = f"{self.stage}: step {state.global_step}/{state.max_steps}, loss {logs['loss']:.4f}, {left} left"
        print(line, file=sys.stderr, flush=True)


class Progress(ProgressCallback):
    """The trainer's own bar with the loss beside it, instead of a dictionary a line."""

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Show the newest loss."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")


def run_training(trainer: Trainer, context: StageContext, logs: Sequence[Path] = ()) -> dict[str, Any]:
    """Train, from the last whole checkpoint if there is one, and evaluate before and after on the held-out rows.

    Args:
        trainer: The trainer.
        context: The stage.
        logs: Files that the trainer writes besides `metrics.jsonl`, a `step` in each line.

    Returns:
        `loss_before` and the rest of the final evaluation, without the `eval_` prefix; `train_loss`, `steps`,
        `train_rows`, `eval_rows`, `train_time_s`.
    """
    trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    trainer.add_callback(ProgressLines(context.name) if trainer.args.disable_tqdm else Progress())
    metrics_file = MetricsFile(context.name, context.directory / "metrics.jsonl")
    for callback in (metrics_file, LogAtCheckpoints(), ResumedEpoch()):
        trainer.add_callback(callback)
    held_out = trainer.eval_dataset is not None
    with process_state().main_process_first():
        checkpoint = last_good_checkpoint(context.directory / "checkpoints")
    if trainer.is_world_process_zero():
        for path in (metrics_file.path, *logs):
            keep_through(path, int(checkpoint.rpartition("-")[2]) if checkpoint else 0)
    # not by calling evaluate(): before train() it leaves the model without DDP, and no gradient is ever averaged
    trainer.args.eval_on_start = held_out and checkpoint is None
    start = time.perf_counter()
    output = trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    return {
        **held_out_metrics(trainer),
        "loss_before": next((row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row), None),
        "train_loss": mean_train_loss(trainer.state.log_history),
        "steps": output.global_step,
        "train_rows": len(trainer.train_dataset),
        "eval_rows": len(trainer.eval_dataset) if held_out else 0,
        "train_time_s": round(seconds, 1),
    }


def held_out_metrics(trainer: Trainer) -> dict[str, Any]:
    """Evaluation of the model as it is on the held-out rows, without the `eval_` prefix; nothing without such rows."""
    after = trainer.evaluate() if trainer.eval_dataset is not None else {}
    metrics = {key.removeprefix("eval_"): value for key, value in after.items() if key.startswith("eval_")}
    timing = ("runtime", "samples_per_second", "steps_per_second", "num_tokens", "model_preparation_time")
    return {key: value for key, value in metrics.items() if key not in timing}


def last_good_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; a torn one is passed over."""
    if not folder.is_dir():
        return None
    newest = get_last_checkpoint(str(folder))
    if newest is None:
        return None
    try:
        json.loads((Path(newest) / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        return newest
    except (OSError, ValueError):
        torn = Path(newest)
        torn.rename(torn.with_name("torn-" + torn.name))
        return last_good_checkpoint(folder)


def save_model(
    trainer: Trainer, ready: Ready, context: StageContext, model: PeftModel | PreTrainedModel | None = None
) -> dict[str, Any]:
    """Write the trained model so that plain peft or transformers load it: one adapter on the original base, or weights.

    Collective under FSDP and DeepSpeed: every process must call it.

    Args:
        trainer: The finished trainer.
        ready: What the stage began with.
        context: The stage.
        model: What is saved, where it is only part of what was trained.

    Returns:
        What the manifest records: `tokenizer`, `max_length`, `lineage`, and the `probe` by which whoever loads the
        artefact can tell that it is the same model (none where the weights are sharded).

    Raises:
        UserError: What was saved, loaded again as the next stage will, is not the model that was trained (looked at
            where the weights are not sharded).
    """
    start, folder = ready.start, context.directory
    model = model if model is not None else trainer.accelerator.unwrap_model(trainer.model)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    state = trainer.accelerator.get_state_dict(trainer.model) if sharded else None
    adapter = isinstance(model, PeftModel)
    if trainer.is_world_process_zero():
        write_model(model, start, folder, state)
    trainer.accelerator.wait_for_everyone()
    tokenizer = tokenizer_record(start.tokenizer)
    made = None if sharded else probe.make(model, _probe_sequences(ready.data))
    if made is not None and trainer.is_world_process_zero():
        check_saved(model, made, folder, start.config, tokenizer)
    source = start.source
    return {
        "tokenizer": tokenizer,
        "max_length": ready.args.max_length,
        "prompt_format": _prompt_format(context),
        "lineage": {
            "base": source.base, "revision": source.revision, "commit": probe.base_commit(source), "adapter": adapter,
        },
        "probe": made,
    }  # fmt: skip


def write_model(
    model: PeftModel | PreTrainedModel, start: StartingPoint, folder: Path, state: dict[str, Any] | None = None
) -> None:
    """Write a model as a folder that plain peft or transformers load: one adapter on the original base, or weights.

    Args:
        model: The model in training.
        start: What the stage began with: its parent's adapter is joined with the new one.
        folder: Where to.
        state: The weights, where they had to be gathered.
    """
    if isinstance(model, PeftModel):
        # TRL's reference adapter, where it makes one, is no part of the result
        model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False, selected_adapters=["default"])
        sort_modules(folder)
        if start.source.adapter is not None:
            join_adapters(start.source.adapter, folder, folder)
    else:
        model.save_pretrained(folder, state_dict=state)
    mark_eos(start.tokenizer)
    start.tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; publishing writes the real one


def _prompt_format(context: StageContext) -> str:
    """Whether the stage learned from `messages` or from plain `text`: what chat and the model card must write."""
    role = stage_of(context.name).data
    assert role is not None
    record, _ = next(iter_records(context.project, role))
    return "messages" if isinstance(getattr(record, "prompt", ""), list) else "text"


def _probe_sequences(data: Prepared) -> list[list[int]]:
    rows = (data.eval if len(data.eval) else data.train).select(range(min(probe.SIZE, len(data.eval or data.train))))
    if "input_ids" in rows.column_names:
        return rows["input_ids"][:]
    prompts = rows["prompt_ids"][:] if "prompt_ids" in rows.column_names else [[] for _ in range(len(rows))]
    if "chosen_ids" not in rows.column_names:
        return prompts
    return [[*prompt, *chosen] for prompt, chosen in zip(prompts, rows["chosen_ids"][:], strict=True)]
