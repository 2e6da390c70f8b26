"""What `rlhf check` says of memory and time: estimates made in processes of their own, and their table."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config.project import ProjectConfig
from rlhf.config.yaml_loader import read
from rlhf.errors import reason
from rlhf.pipeline import runner
from rlhf.pipeline.execute import prepare_stage
from rlhf.pipeline.folder import partial_dir
from rlhf.pipeline.launch_file import Launch
from rlhf.preflight.estimates import Change, Models, StageEstimate, estimate_stage, estimated_stages
from rlhf.preflight.machine import GB, Engine, Machine
from rlhf.preflight.measure import STEPS, measured_project, measured_stages, read_measured, run_measured

if TYPE_CHECKING:
    from rich.console import RenderableType

_FILE = "preflight.json"
_SMALL = 0.005 * GB
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Asked:
    """The machine that is asked for."""

    devices: int | None = None
    memory: float | None = None
    """GB of a GPU."""
    engine: Engine = "ddp"

    @classmethod
    def of(cls, devices: int | None, memory: float | None, launch: Launch | None) -> Asked:
        """The machine of the command's options, which come before the accelerate config."""
        if launch is None:
            return cls(devices, memory)
        return cls(devices or launch.processes, memory, engine_of(launch.file))


@dataclass(frozen=True)
class Preflight:
    """What was estimated."""

    machine: Machine
    stages: Sequence[StageEstimate]
    problems: Mapping[str, str]
    """Of stages that could not be estimated, why."""


def engine_of(file: Path) -> Engine:
    """How the processes of an accelerate config train together."""
    settings: Any = read(file.read_text(encoding="utf-8"))
    kind = settings.get("distributed_type")
    if kind == "FSDP":
        return "fsdp2"
    if kind == "DEEPSPEED":
        stage = (settings.get("deepspeed_config") or {}).get("zero_stage", 2)
        return "zero3" if stage == 3 else "zero2"
    return "ddp"


def look(scratch: runner.Scratch, asked: Asked, measure: bool) -> Preflight:
    """Estimate every stage of a project whose data is prepared.

    Args:
        scratch: Where it is.
        asked: The machine.
        measure: Whether two optimizer steps of each stage are run for the time.
    """
    measured = measured_steps(scratch.project) if measure else {}
    names = estimated_stages(scratch.project)
    scratch.start(functools.partial(write_estimates, asked=asked, measured=measured), names[0])
    return read_estimates(scratch.project.run_dir / _FILE)


def measured_steps(project: ProjectConfig) -> dict[str, dict[str, Any]]:
    """What two steps of each stage took, as JSON; a stage that fails has said why, and is estimated without."""
    measured = {}
    with runner.scratch(measured_project(project)) as copy:
        for name in measured_stages(copy.project):
            with contextlib.suppress(runner.StageFailed):
                copy.start(prepare_stage, name)
                copy.start(run_measured, name)
                measured[name] = dataclasses.asdict(read_measured(copy.project, name))
    return measured


def write_estimates(project: ProjectConfig, name: str, asked: Asked, measured: Mapping[str, dict[str, Any]]) -> None:
    """Estimate all stages of a project, whatever `name` is, and write them to its folder; for a process of its own."""
    from rlhf.preflight.measure import Measured

    machine, models = Machine.given(asked.devices, asked.memory, asked.engine), Models()
    stages, problems = [], {}
    folders = [partial_dir(project, stage) / "data" for stage in estimated_stages(project)]
    prepared = [folder for folder in folders if folder.is_dir()]
    for stage in estimated_stages(project):
        steps = Measured.of(measured[stage]) if stage in measured else None
        own = partial_dir(project, stage) / "data"
        rows = own if own in prepared else next(reversed(prepared), None)  # another set's prompts, for evaluation
        try:
            found = estimate_stage(project, stage, machine, rows, models, steps)
            stages.append(dataclasses.asdict(found))
        except Exception as error:  # an architecture's own code fails in its own way, and nothing depends on it
            problems[stage] = reason(error)
    written = {"machine": dataclasses.asdict(machine), "stages": stages, "problems": problems}
    (project.run_dir / _FILE).write_text(json.dumps(written), encoding="utf-8")


def read_estimates(file: Path) -> Preflight:
    """What `write_estimates` wrote."""
    given = json.loads(file.read_text(encoding="utf-8"))
    stages = []
    for stage in given["stages"]:
        change = None if stage["change"] is None else Change(**stage["change"])
        stages.append(StageEstimate(**{**stage, "change": change, "notes": tuple(stage["notes"])}))
    return Preflight(Machine(**given["machine"]), stages, given["problems"])


def as_json(found: Preflight) -> dict[str, Any]:
    """For scripts: bytes and seconds."""
    stages = [
        {**dataclasses.asdict(stage), "parts": dict(stage.parts), "bytes": stage.bytes, "fits": stage.fits}
        for stage in found.stages
    ]
    return {"machine": dataclasses.asdict(found.machine), "stages": stages, "problems": dict(found.problems)}


def tables(found: Preflight) -> RenderableType:
    """One table of all stages: the parts of each at its peak, their sum, the time, and what to change."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "Stage", "Part", "GB", header_style="bold", title=f"Memory and time on {found.machine.label}",
        title_justify="left",
    )  # fmt: skip
    table.columns[2].justify = "right"
    for stage in found.stages:
        for number, (part, size) in enumerate(_largest(stage)):
            table.add_row(stage.stage if number == 0 else "", part, gigabytes(size))
        total = f"{gigabytes(stage.bytes)} of {gigabytes(stage.memory)}"
        table.add_row("", Text(f"peak, in {stage.phase}", "bold"), Text(total, "bold" if stage.fits else "bold red"))
        if stage.measured_bytes is not None:
            table.add_row("", f"peak of {STEPS} steps, measured here", gigabytes(stage.measured_bytes))
        if stage.seconds is not None:
            table.add_row("", f"time, {_how(stage)}", duration(stage.seconds))
        table.add_section()
    lines = [Text(line) for stage in found.stages for line in _lines(stage)]
    lines += [Text(f"{name}: not estimated: {why}") for name, why in found.problems.items()]
    return Group(table, *lines)


def _largest(stage: StageEstimate) -> list[tuple[str, float]]:
    """The parts, largest first; those that the table would show as 0.00 together."""
    large = {part: size for part, size in stage.parts.items() if size >= _SMALL}
    rest = stage.bytes - sum(large.values())
    return [*sorted(large.items(), key=lambda item: -item[1]), *([("other", rest)] if rest else [])]


def _how(stage: StageEstimate) -> str:
    return f"by {STEPS} measured steps" if stage.measured else "by arithmetic"


def _lines(stage: StageEstimate) -> list[str]:
    """What to be told of a stage behind the table."""
    lines = [f"{stage.stage}: {note}" for note in stage.notes]
    if stage.fits:
        return lines
    if stage.change is None:
        return [*lines, f"{stage.stage} will not fit, and no setting makes it smaller: take a smaller model"]
    with_it = f"{stage.change.setting} (→ {gigabytes(stage.change.bytes)} GB)"
    enough = "" if stage.change.bytes <= stage.memory else ", which is not enough by itself"
    return [*lines, f"{stage.stage} will not fit: first set {with_it}{enough}"]


def gigabytes(size: float) -> str:
    """Bytes as GB (10⁹)."""
    return f"{size / GB:.2f}" if size < 10 * GB else f"{size / GB:.1f}"


def duration(seconds: tuple[float, float, float]) -> str:
    """Least, expected and most seconds, in the unit that suits."""
    least, expected, most = seconds
    for size, unit in ((_DAY, "days"), (_HOUR, "h"), (_MINUTE, "min")):
        if expected >= 2 * size:
            return f"{expected / size:.1f} {unit} ({least / size:.1f} to {most / size:.1f})"
    return f"{expected:.0f} s ({least:.0f} to {most:.0f})"
