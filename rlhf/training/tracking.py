"""Reports a run to TensorBoard, Weights & Biases or Trackio, as `report_to` asks; nothing is reported by default.

A project's run is one thing in each of them, and its stages stand side by side in it:

* TensorBoard: `runs/NAME/logs/STAGE`, so that `tensorboard --logdir runs/NAME/logs` shows all stages.
* W&B: a run for each stage, with the project's run as its `group` and the stage as its `job_type`. Stages are processes
  with optimizer steps of their own; one run for all of them would have one axis of steps, which only rises.
* Trackio: a project with the run's name, and a run in it for each stage.

The callbacks of transformers log what a trainer logs; `finished` adds what a stage measured.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import math
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf import processes
from rlhf.config.project import ProjectConfig
from rlhf.durable import written_whole
from rlhf.errors import UserError
from rlhf.workflow import StageContext

LOGS = "logs"
"""Folder of a run for TensorBoard's event files and W&B's own files."""
_MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""Reporter -> the module that it needs, of those that every stage reports to; others have what trainers log alone."""
_SUMMARY = "final"
"""Beginning of the names of what a stage measured."""


def reporters(project: ProjectConfig, name: str) -> list[str]:
    """Where a stage reports to: what its own settings say, else what the project says.

    Args:
        project: The project.
        name: The stage.
    """
    stage_setting = _stage_setting(project, name)
    setting = project.report_to if stage_setting is None else stage_setting
    named = [setting] if isinstance(setting, str) else list(setting or ())
    if named == ["all"]:
        return [reporter for reporter, module in _MODULES.items() if importlib.util.find_spec(module) is not None]
    return [reporter for reporter in named if reporter != "none"]


def _stage_setting(project: ProjectConfig, name: str) -> Any:
    """What the settings of a stage say; None where they say nothing."""
    return project.stage(name).trainer.get("report_to") if project.has_stage(name) else None


def check_reporters(project: ProjectConfig, name: str) -> None:
    """Check that what a stage reports to is installed.

    Raises:
        UserError: It is not.
    """
    for reporter in reporters(project, name):
        module = _MODULES.get(reporter)
        if module is not None and importlib.util.find_spec(module) is None:
            key = "report_to" if _stage_setting(project, name) is None else f"stages.{name}.report_to"
            raise UserError(f"{project.path}: {key}: {reporter} is not installed: pip install {module}")


@contextlib.contextmanager
def reporting(context: StageContext) -> Iterator[None]:
    """Around a stage's work: what it logs goes to the project's run, and what was opened is closed.

    Args:
        context: The stage.
    """
    check_reporters(context.project, context.name)
    named = reporters(context.project, context.name)
    if not named or not processes.is_main():
        yield
        return
    if "tensorboard" in named:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(_event_folder(context)))
    if "wandb" in named:
        _open_wandb(context)
    failed = True
    try:
        yield
        failed = False
    finally:
        wandb: Any = sys.modules.get("wandb")
        if "wandb" in named and wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=int(failed))  # at the end of this process nobody would


def _event_folder(context: StageContext) -> Path:
    """Where TensorBoard's files go; those of an earlier training of the stage are moved aside, as STAGE.1 and so on."""
    folder = context.project.run_dir / LOGS / context.name
    if folder.is_dir() and not _continues(context):
        number = next(n for n in itertools.count(1) if not folder.with_name(f"{context.name}.{n}").exists())
        folder.rename(folder.with_name(f"{context.name}.{number}"))
    return folder


def _open_wandb(context: StageContext) -> None:
    """Begin the stage's W&B run, or go on with it where the stage was interrupted.

    `WANDB_PROJECT`, `WANDB_MODE` and the other variables of W&B hold.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's own telemetry
    import wandb

    run_dir = context.project.run_dir
    (run_dir / LOGS).mkdir(parents=True, exist_ok=True)
    wandb.init(
        project=os.environ.get("WANDB_PROJECT", "rlhf"), group=group(context.project), job_type=context.stage.name,
        name=f"{group(context.project)}/{context.name}", id=_run_id(context), resume="allow", dir=str(run_dir / LOGS),
        settings=wandb.Settings(silent=True, console="off"),
    )  # fmt: skip


def group(project: ProjectConfig) -> str:
    """What the stages of a run are grouped by: its name, and the round where that is a later one."""
    return project.name if project.round == 1 else f"{project.name}-round-{project.round}"


def _run_id(context: StageContext) -> str:
    """Of the stage's W&B run: the same where a training goes on from a checkpoint, else another each time."""
    path = context.project.run_dir / LOGS / f".wandb-{context.name}"
    if _continues(context) and path.is_file():
        return path.read_text(encoding="utf-8")
    run_id = uuid.uuid4().hex[:16]
    with written_whole(path) as whole:
        whole.write_text(run_id, encoding="utf-8")
    return run_id


def _continues(context: StageContext) -> bool:
    """Whether the stage continues an interrupted training."""
    return any(context.directory.glob("checkpoints/checkpoint-*"))


def trainer_fields(project: ProjectConfig, name: str) -> dict[str, Any]:
    """Fields of a trainer's config that decide where it reports to."""
    named = reporters(project, name) if processes.is_main() else []
    fields: dict[str, Any] = {"report_to": named or "none"}
    if "trackio" in named:
        fields |= {"project": group(project), "run_name": name}
    return fields


def finished(context: StageContext, measure: Callable[[], Mapping[str, Any]]) -> None:
    """Report what a stage measured, one value each, under `final/`.

    Args:
        context: The stage; of one that has no trainer this is all that is reported.
        measure: Gives numbers, in dictionaries to any depth; what is no finite number is left out.
    """
    named = reporters(context.project, context.name)
    if not named or not processes.is_main():
        return
    values = dict(flat(measure(), _SUMMARY))
    if "tensorboard" in named:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(log_dir=os.environ["TENSORBOARD_LOGGING_DIR"]) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, 0)
    if "wandb" in named:
        import wandb

        assert wandb.run is not None
        wandb.run.summary.update(values)
    if "trackio" in named:
        import trackio

        trackio.init(project=group(context.project), name=context.name, resume="allow")
        trackio.log(values)
        trackio.finish()


def flat(value: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """The finite numbers in a JSON value, by their path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{prefix}/{key}")
    elif isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value)):
        yield prefix, float(value)


def comparisons(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Comparisons or measurements of policies as values to report, by what they compare."""
    reported = ("mean_difference", "win_rate", "policy_mean", "baseline_mean", "higher", "p_adjusted", "n")
    by_name = {}
    for row in rows:
        values = {name: row[name] for name in reported if row.get(name) is not None}
        if (interval := row.get("difference_ci")) is not None:
            values |= {"difference_low": interval[0], "difference_high": interval[1]}
        by_name[f"{row['policy']} vs {row['baseline']}/{row.get('judge', row.get('measure'))}"] = values
    return by_name
