"""Runs a trainer: from its last whole checkpoint, evaluated on held-out rows before and after."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer

from rlhf import processes
from rlhf.data.prepare import load_prepared
from rlhf.training import incidents
from rlhf.training.buckets import ResumedEpoch
from rlhf.training.checkpoints import good_checkpoint, step_of
from rlhf.training.logs import MetricsFile, keep_through, progress_callback
from rlhf.training.train_loss import LogAtCheckpoints, mean_train_loss
from rlhf.training.trainer import ResumableTrainer, StopAtSignal
from rlhf.workflow import StageContext


def run_training(trainer: ResumableTrainer, context: StageContext, logs: Sequence[Path] = ()) -> dict[str, Any]:
    """Train, from the last whole checkpoint if there is one, and evaluate before and after on the held-out rows.

    Args:
        trainer: The trainer.
        context: The stage.
        logs: Files that the trainer writes besides `metrics.jsonl`, a `step` in each line.

    Returns:
        `loss_before` and the rest of the final evaluation, without the `eval_` prefix; `train_loss`, `steps`,
        `train_rows`, `eval_rows`, `train_time_s`; `skipped_steps` where steps that are not finite are skipped.
    """
    trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    trainer.add_callback(progress_callback(context.name, context.stage.shows, bool(trainer.args.disable_tqdm)))
    trainer.stage, trainer.on_nonfinite = context.name, context.settings.on_nonfinite
    trainer.incident_file = context.directory / incidents.INCIDENTS
    trainer.origins = lambda: load_prepared(context.directory / "data").origins
    metrics_file = MetricsFile(context.name, context.directory / "metrics.jsonl")
    for callback in (metrics_file, LogAtCheckpoints(), ResumedEpoch(), StopAtSignal(trainer)):
        trainer.add_callback(callback)
    train_rows: Any = trainer.train_dataset
    eval_rows: Any = trainer.eval_dataset
    trainer.logs = (metrics_file.path, *logs)
    checkpoint = processes.from_main(lambda: good_checkpoint(context.directory / "checkpoints"))
    if trainer.is_world_process_zero():
        for path in trainer.logs:
            keep_through(path, step_of(checkpoint) if checkpoint else 0)
        incidents.keep_through(trainer.incident_file, step_of(checkpoint) if checkpoint else 0)
        if checkpoint is not None:
            print(f"{context.name}: continues from {checkpoint.name}", file=sys.stderr)
    # not by calling evaluate(): before train() it leaves the model without DDP, and no gradient is ever averaged
    trainer.args.eval_on_start = eval_rows is not None and checkpoint is None
    start = time.perf_counter()
    output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - start
    skipped = sum(row.get("skipped_steps", 0) for row in trainer.state.log_history)
    return {
        **held_out_metrics(trainer),
        "loss_before": next((row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row), None),
        "train_loss": mean_train_loss(trainer.state.log_history),
        "steps": output.global_step,
        "train_rows": len(train_rows),
        "eval_rows": 0 if eval_rows is None else len(eval_rows),
        "train_time_s": round(seconds, 1),
        **({"skipped_steps": skipped} if trainer.on_nonfinite == "skip" else {}),
    }


def held_out_metrics(trainer: Trainer) -> dict[str, Any]:
    """Evaluation of the model as it is on the held-out rows, without the `eval_` prefix; nothing without such rows."""
    after = trainer.evaluate() if trainer.eval_dataset is not None else {}
    metrics = {key.removeprefix("eval_"): value for key, value in after.items() if key.startswith("eval_")}
    timing = ("runtime", "samples_per_second", "steps_per_second", "num_tokens", "model_preparation_time")
    return {key: value for key, value in metrics.items() if key not in timing}
