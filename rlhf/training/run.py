"""Runs a trainer: from its last whole checkpoint, evaluated on held-out rows before and after."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import get_last_checkpoint

from rlhf.models.device import process_state
from rlhf.training.buckets import ResumedEpoch
from rlhf.training.logs import MetricsFile, ProgressBar, ProgressLines, keep_through
from rlhf.training.train_loss import LogAtCheckpoints, mean_train_loss
from rlhf.workflow import StageContext


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
    trainer.add_callback(ProgressLines(context.name) if trainer.args.disable_tqdm else ProgressBar())
    metrics_file = MetricsFile(context.name, context.directory / "metrics.jsonl")
    for callback in (metrics_file, LogAtCheckpoints(), ResumedEpoch()):
        trainer.add_callback(callback)
    train_rows: Any = trainer.train_dataset
    eval_rows: Any = trainer.eval_dataset
    with process_state().main_process_first():
        checkpoint = last_good_checkpoint(context.directory / "checkpoints")
    if trainer.is_world_process_zero():
        for path in (metrics_file.path, *logs):
            keep_through(path, int(checkpoint.rpartition("-")[2]) if checkpoint else 0)
    # not by calling evaluate(): before train() it leaves the model without DDP, and no gradient is ever averaged
    trainer.args.eval_on_start = eval_rows is not None and checkpoint is None
    start = time.perf_counter()
    output = trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    return {
        **held_out_metrics(trainer),
        "loss_before": next((row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row), None),
        "train_loss": mean_train_loss(trainer.state.log_history),
        "steps": output.global_step,
        "train_rows": len(train_rows),
        "eval_rows": 0 if eval_rows is None else len(eval_rows),
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
