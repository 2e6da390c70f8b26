"""What each stage of a project takes on a machine: memory by part at its peak, time, what to change where it lacks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config.project import ModelConfig, ProjectConfig, StageConfig, StageId
from rlhf.preflight.machine import Machine
from rlhf.workflow import kind_of, planned, stage_of
from rlhf.workload import Circumstances, Pass

if TYPE_CHECKING:
    from rlhf.preflight.lengths import RowLengths, Rows
    from rlhf.preflight.measure import Measured
    from rlhf.preflight.memory import Situation
    from rlhf.preflight.models import Built

_ASSUMED_LENGTH = 512
_ASSUMED_ROWS = 1000


@dataclass(frozen=True)
class Change:
    """A setting that makes a stage smaller."""

    setting: str
    """As in the YAML, such as `per_device_train_batch_size: 2`."""
    bytes: float
    """The peak with it."""


@dataclass(frozen=True)
class StageEstimate:
    """What a stage takes."""

    stage: str
    phase: str
    """When it holds most: `training`, `sampling`, `saving` …"""
    parts: Mapping[str, float]
    """Bytes on each device at that time, by part."""
    memory: float
    """Bytes that a device has."""
    seconds: tuple[float, float, float] | None = None
    """Least, expected and most seconds of the whole stage; None where they are not known."""
    measured: bool = False
    """Whether the seconds follow from measured steps; else from arithmetic."""
    measured_bytes: float | None = None
    """The peak of two steps on this machine, where they were run."""
    change: Change | None = None
    """The first setting to change where it does not fit; None where it does, or nothing helps."""
    notes: tuple[str, ...] = field(default=())
    """What was assumed."""

    @property
    def bytes(self) -> float:
        """Bytes on each device at the peak."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the memory holds it."""
        return self.bytes <= self.memory


def estimate(
    project: ProjectConfig,
    machine: Machine,
    folders: Mapping[str, Path] | None = None,
    models: Models | None = None,
) -> list[StageEstimate]:
    """What each stage of a project takes on a machine. Nothing is loaded but the models' configs.

    Args:
        project: The project.
        machine: Where it runs.
        folders: Of stages the folder with their prepared data; of others each row is assumed to be as long as
            `max_length` allows.
        models: Models of an earlier estimate: what was built and traced there is not built and traced again.

    Raises:
        UserError: A model's config cannot be read.
    """
    models = models or Models()
    return [
        estimate_stage(project, name, machine, (folders or {}).get(name), models) for name in estimated_stages(project)
    ]


def estimate_seconds(
    project: ProjectConfig, machine: Machine, lengths: Mapping[str, RowLengths], models: Models | None = None
) -> dict[str, tuple[float, float, float]]:
    """Least, expected and most seconds of stages by arithmetic, before their data is prepared.

    Args:
        project: The project.
        machine: Where it runs.
        lengths: Of each stage that is wanted, the lengths of its rows.
        models: As in `estimate`.

    Raises:
        UserError: A model's config cannot be read.
    """
    from rlhf.preflight.seconds import seconds_of

    models = models or Models()
    return {
        name: seconds_of(situation_of(project, name, machine, lengths[name], models))
        for name in estimated_stages(project) if name in lengths
    }  # fmt: skip


def estimated_stages(project: ProjectConfig) -> list[str]:
    """The stages of a project that say what they hold, each once however often it is repeated."""
    return [name for name in planned(project) if name == kind_of(name) and stage_of(name).workload is not None]


class Models:
    """Models without weights, each built once."""

    def __init__(self) -> None:
        self._built: dict[str, Built] = {}
        self.traces: dict[Any, Any] = {}

    def get(self, base: ModelConfig, adapter: Mapping[str, Any] | None, scores: bool, trained: bool) -> Built:
        """The model; see `models.build`."""
        from rlhf.preflight.models import build

        key = json.dumps([dataclasses.asdict(base), adapter, scores, trained], sort_keys=True, default=str)
        if key not in self._built:
            self._built[key] = build(base, adapter, scores, trained)
        return self._built[key]


def estimate_stage(
    project: ProjectConfig,
    name: str,
    machine: Machine,
    folder: Path | None,
    models: Models,
    measured: Measured | None = None,
) -> StageEstimate:
    """What a stage takes; see `estimate`.

    Args:
        project: The project.
        name: The stage.
        machine: Where it runs.
        folder: With its prepared data; None where there is none.
        models: Models that were built before.
        measured: What two steps of it took on this machine.
    """
    from rlhf.preflight.memory import phases
    from rlhf.preflight.seconds import seconds_by_steps, seconds_of

    situation = situation_of(project, name, machine, folder, models)
    phase, parts = _peak(phases(situation))
    change = None
    if sum(parts.values()) > machine.memory:
        change = first_change(project, name, machine, folder, models, phase)
    notes = []
    if any(not rows.measured for rows in situation.rows.values()):
        notes.append("lengths of its rows are assumed")
    by_steps = measured is not None and bool(measured.step)  # a stage that trains nothing has none
    seconds = seconds_by_steps(situation, measured) if measured and by_steps else seconds_of(situation)
    peak = measured.peak if measured and by_steps else None
    return StageEstimate(name, phase, parts, machine.memory, seconds, by_steps, peak, change, tuple(notes))


def _peak(found: Mapping[str, Mapping[str, float]]) -> tuple[str, dict[str, float]]:
    """The phase that holds most, and its parts."""
    phase = max(found, key=lambda name: sum(found[name].values()))
    return phase, dict(found[phase])


def situation_of(
    project: ProjectConfig, name: str, machine: Machine, rows: Path | RowLengths | None, models: Models
) -> Situation:
    """A stage with its models built and its rows read.

    Args:
        project: The project.
        name: The stage.
        machine: Where it runs.
        rows: The folder of its prepared data, or what is known of its rows without; None for nothing.
        models: Models that were built before.
    """
    from rlhf.models.settings import located
    from rlhf.preflight.memory import Situation
    from rlhf.training.defaults import settings_of

    stage = stage_of(name)
    configured = project.stage(name) if project.has_stage(name) else StageConfig()
    settings = settings_of(stage.name, configured.trainer) if stage.trainer else {}
    assert stage.workload is not None
    workload = stage.workload(project, name, Circumstances(settings, machine.devices, machine.sharded))
    built: dict[str, Built] = {}
    first = workload.models[0]
    for model in workload.models:
        base = model.base if model.base is not None else first.base
        assert base is not None
        scores = model.scores and model.base is not None
        adapter = model.adapter
        built[model.role] = models.get(located(base, project), adapter, scores, model.trained)
    if built[first.role].task.new_head:
        workload = dataclasses.replace(workload, passes=tuple(map(_reading, workload.passes)))
    by_pass = {passing.name: _rows(passing, rows, settings, built[first.role]) for passing in workload.passes}
    return Situation(workload, built, by_pass, settings, machine, configured.fold, models.traces)


def _reading(passing: Pass) -> Pass:
    """A pass of a policy that writes nothing, as it classifies or marks: its head has few outputs."""
    if not passing.writes:
        return passing
    return dataclasses.replace(passing, writes=0, sampling=False, sequences=(("input_ids",),), head="score")


def _rows(passing: Pass, given: Path | RowLengths | None, settings: Mapping[str, Any], built: Built) -> Rows:
    """The rows of a pass."""
    from rlhf.preflight.lengths import RowLengths, assumed, read_rows

    if isinstance(given, RowLengths):
        return given.rows(passing)
    if given is not None:
        read = read_rows(given / ("eval" if passing.held_out else "train"), passing.sequences)
        if read is not None:
            return read
    longest = min(filter(None, (settings.get("max_length") or _ASSUMED_LENGTH, built.context)))
    if passing.writes:
        longest = max(1, longest - passing.writes)
    return assumed(longest, len(passing.sequences), _ASSUMED_ROWS)


def first_change(
    project: ProjectConfig, name: str, machine: Machine, folder: Path | None, models: Models, phase: str
) -> Change | None:
    """The first setting with which a stage fits; where none suffices, the one that saves most."""
    from rlhf.preflight.memory import phases

    best = None
    for setting, changed, where in _candidates(project, name, machine, phase):
        peak = sum(_peak(phases(situation_of(changed, name, where, folder, models)))[1].values())
        if best is None or peak < best.bytes:
            best = Change(setting, peak)
        if peak <= machine.memory:
            return Change(setting, peak)
    return best


def _candidates(
    project: ProjectConfig, name: str, machine: Machine, phase: str
) -> Iterator[tuple[str, ProjectConfig, Machine]]:
    """Settings that make a stage smaller, those first that change no result and cost little."""
    if not project.has_stage(name):
        batch = project.evaluate.batch_size
        while batch > 1:
            batch //= 2
            evaluate = dataclasses.replace(project.evaluate, batch_size=batch)
            yield f"evaluate.batch_size: {batch}", dataclasses.replace(project, evaluate=evaluate), machine
        return
    from rlhf.training.defaults import settings_of

    settings = settings_of(kind_of(name), project.stage(name).trainer)

    def with_fields(**fields: Any) -> ProjectConfig:
        return _with_stage(project, name, lambda stage: {"trainer": {**stage.trainer, **fields}})

    order = ["sampling_batch_size"] if phase == "sampling" else []
    order += ["per_device_eval_batch_size"] if phase in ("evaluation", "measuring", "scoring") else []
    order += ["per_device_train_batch_size"] if phase == "training" else []
    for field_name in order:
        value = settings.get(field_name) or 1
        while value > 1:
            value //= 2
            fields = {field_name: value}
            if field_name == "per_device_train_batch_size":
                steps = settings.get("gradient_accumulation_steps") or 1
                fields["gradient_accumulation_steps"] = steps * settings[field_name] // value
            yield f"{field_name}: {value}", with_fields(**fields), machine
    if phase == "training" and not settings.get("gradient_checkpointing"):
        yield "gradient_checkpointing: true", with_fields(gradient_checkpointing=True), machine
    if machine.devices > 1 and not machine.sharded:
        yield "--accelerate recipes/accelerate/fsdp2.yaml", project, dataclasses.replace(machine, engine="fsdp2")
    if project.stage_model(name).adapter is None:
        yield "adapter: {r: 16}", _with_stage(project, name, lambda _: {"adapter": {"r": 16}}), machine
    if (length := settings.get("max_length")) and phase == "training":
        yield f"max_length: {length // 2}", with_fields(max_length=length // 2), machine


def _with_stage(project: ProjectConfig, name: str, changed: Callable[[StageConfig], dict[str, Any]]) -> ProjectConfig:
    """A project with other fields of a stage."""
    kind = StageId.parse(name).kind
    stage = project.stages[kind]
    return dataclasses.replace(project, stages={**project.stages, kind: dataclasses.replace(stage, **changed(stage))})
