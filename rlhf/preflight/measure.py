"""Two optimizer steps of each stage, run as a stage is and thrown away: seconds a step, and the peak of memory."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.project import ProjectConfig, StageConfig
from rlhf.config.sets import DatasetConfig
from rlhf.workflow import kind_of, planned, stage_of

STEPS = 2


@dataclass(frozen=True)
class Measured:
    """What a stage of two optimizer steps took."""

    peak: float
    """Bytes of the process at its peak: of a GPU, else resident."""
    step: tuple[float, ...]
    """Seconds of each optimizer step."""
    rollouts: tuple[float, ...]
    """Seconds before the first step of each epoch: in online training it samples, scores and measures then."""
    around: float
    """Seconds of loading and saving."""
    loaded: float = 0.0
    """Bytes that the process held when training began."""
    tokens: tuple[float, ...] = ()
    """Tokens of each step, where the trainer counts them."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Measured:
        """From what was written as JSON."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
        }
        return cls(**values)


def measured_project(project: ProjectConfig) -> ProjectConfig:
    """A project whose stages take two steps, hold nothing out and save at their end alone."""
    stages = {}
    for name, config in project.stages.items():
        fields: dict[str, Any] = {}
        if "max_steps" in _fields(name):
            fields = {"max_steps": _steps(name, config), "save_strategy": "no", "logging_steps": 1, "report_to": "none"}
            fields = {key: value for key, value in fields.items() if key in _fields(name)}
        elif "prompts" in _fields(name):
            fields = {"prompts": 8}
        stages[name] = dataclasses.replace(
            config, trainer={**config.trainer, **fields}, seeds=1, checkpoint_judge=None, select="last"
        )
    sets: dict[str, Any] = {
        field.name: dataclasses.replace(value, holdout=0.0)
        for field in dataclasses.fields(project.data)
        if isinstance(value := getattr(project.data, field.name), DatasetConfig)
    }
    return dataclasses.replace(project, stages=stages, data=dataclasses.replace(project.data, **sets))


def _steps(name: str, config: StageConfig) -> int:
    """Optimizer steps that are run: of online training so many that a second rollout, to which all is warm, is used."""
    from rlhf.training.defaults import settings_of

    settings = settings_of(kind_of(name), config.trainer)
    return max(STEPS, 1 + settings.get("num_ppo_epochs", 0) * settings.get("num_mini_batches", 0))


def _fields(name: str) -> Mapping[str, str]:
    from rlhf.config.trainer_fields import trainer_fields

    return trainer_fields(name)


def measured_stages(project: ProjectConfig) -> list[str]:
    """The stages that are measured: those that train or write, in order."""
    return [
        name for name in planned(project)
        if name == kind_of(name) and (stage_of(name).trainer or stage_of(name).leaves == "base")
    ]  # fmt: skip


def run_measured(project: ProjectConfig, name: str) -> None:
    """Run a stage and write beside it what it took; for a process of its own."""
    import torch
    from transformers import trainer

    from rlhf.pipeline.execute import run_stage

    clock = _clock()
    trainer.DEFAULT_CALLBACKS.append(clock)
    start = time.perf_counter()
    run_stage(project, name)
    seconds = time.perf_counter() - start
    marks = [mark - start for mark in clock.marks]
    steps = [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=False)]
    rollouts = [next((mark for mark in clock.marks[::2] if mark >= epoch), epoch) - epoch for epoch in clock.epochs]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    if torch.cuda.is_available():
        peak = float(torch.cuda.max_memory_reserved())
    around = max(0.0, seconds - sum(steps) - sum(rollouts))
    tokens = _tokens(project.run_dir / name / "metrics.jsonl")
    result = Measured(peak, tuple(steps), tuple(rollouts), around, clock.loaded, tokens)
    _file(project, name).write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")


def _file(project: ProjectConfig, name: str) -> Path:
    """Beside the folder of the stage, whose files have a hash."""
    return project.run_dir / f"{name}.measured.json"


def read_measured(project: ProjectConfig, name: str) -> Measured:
    """What `run_measured` wrote."""
    return Measured.of(json.loads(_file(project, name).read_text(encoding="utf-8")))


def _tokens(file: Path) -> tuple[float, ...]:
    """Tokens of each step, from what the trainer logs."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    sums = [row["num_tokens"] for row in rows if "num_tokens" in row and "loss" in row]
    return tuple(last - first for first, last in zip([0.0, *sums], sums, strict=False))


def resident() -> float:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _clock() -> Any:
    """A callback of the Trainer that notes when epochs begin, and when each step begins and ends."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Notes when epochs begin, and when steps begin and end."""

        def __init__(self) -> None:
            self.marks: list[float] = []
            self.epochs: list[float] = []
            self.loaded = 0.0

        def _now(self) -> float:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Once the models are loaded."""
            self.loaded = resident()

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Before the first batch: a rollout is collected next."""
            self.epochs.append(self._now())

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Before the first micro-batch of a step."""
            self.marks.append(self._now())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Once the optimizer has stepped."""
            self.marks.append(self._now())

    return Clock()
