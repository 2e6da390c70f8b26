"""How far a run is: the state of each of its stages, what its report says, and how much room it takes."""

from __future__ import annotations

import datetime
import fcntl
import os
import re
from collections import Counter
from pathlib import Path
from typing import Literal, TypedDict

from rlhf.artifacts.confined import check_confined
from rlhf.artifacts.manifest import MANIFEST, Manifest, read_manifests
from rlhf.artifacts.rounds import run_name
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError
from rlhf.pipeline.folder import LOCK, project_of
from rlhf.pipeline.partial import failure, interrupted
from rlhf.pipeline.plan import plan
from rlhf.report.build import read_comparisons
from rlhf.report.names import shown_verdict
from rlhf.workflow import in_order

State = Literal["done", "stale", "running", "failed", "interrupted", "shut", "not begun"]
"""Of a stage. `failed`: it ended with an error. `shut`: a gate that was not passed. `interrupted`: it began and did not
end, and did not say why: somebody stopped it, or it was killed."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class StageState(TypedDict):
    """A stage of a run."""

    stage: str
    """Its name."""
    state: State
    """How far it is."""
    why: str
    """Why it is stale, or how far it came; empty where there is nothing to say."""


class RunState(TypedDict):
    """A run, as `rlhf runs --json` lists it."""

    folder: str
    """Where it is."""
    name: str
    """What it is called; of a later round, with the round."""
    problem: str | None
    """Why it cannot be read; then nothing below is known."""
    stages: list[StageState]
    """In the order in which they run."""
    verdicts: dict[str, int] | None
    """How many comparisons of its report came out how; None where there is no report."""
    changed: str | None
    """When a stage last wrote, ISO 8601 in UTC."""
    bytes: int
    """Size of its folder, later rounds included."""
    note: str | None
    """What could not be found out of a run that can be read."""


def state_of(folder: Path) -> RunState:
    """How far a run is; a damaged one says why in `problem`, and nothing is raised.

    Args:
        folder: The run's folder.
    """
    state = RunState(
        folder=str(folder), name=folder.name, problem=None, stages=[], verdicts=None, changed=None, bytes=0, note=None
    )
    try:
        check_confined(folder)
        state["name"], state["bytes"] = run_name(folder), _size(folder)
        manifests = read_manifests(folder)
        state["changed"] = _changed(folder, manifests)
        state["stages"], state["note"] = _stages(folder, manifests)
        state["verdicts"] = _verdicts(folder)
    except (UserError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:  # of a file that was edited
        message = str(error) if isinstance(error, UserError) else f"{folder}: cannot be read: {type(error).__name__}"
        state["problem"] = message
    return state


def _stages(folder: Path, manifests: dict[str, Manifest]) -> tuple[list[StageState], str | None]:
    """The stages of a run in order, and why no more than what is finished is known of it."""
    running = _is_running(folder)
    started = {path.name[1:].removesuffix(".partial"): path for path in folder.glob(".*.partial") if path.is_dir()}
    try:
        project = project_of(folder)
        reasons = {planned.stage: planned.reason for planned in plan(project)}
    except UserError as error:  # its YAML or its data are gone, or the YAML has changed to what cannot run
        names = in_order([*manifests, *started])
        states = [_state(name, None, manifests.get(name), started.get(name), running) for name in names]
        return states, f"whether it is up to date is not known: {error}"
    started = {name: path for name, path in started.items() if _has_started(project, name, path)}
    return [
        _state(name, reason, manifests.get(name), started.get(name), running) for name, reason in reasons.items()
    ], None  # fmt: skip


def _has_started(project: ProjectConfig, name: str, partial: Path) -> bool:
    """Whether a stage has started its work: a folder in which data was prepared says nothing of that."""
    return failure(partial) is not None or interrupted(project, name) is not None


def _state(name: str, reason: str | None, manifest: Manifest | None, partial: Path | None, running: bool) -> StageState:
    if partial is not None:
        names = (path.name for path in partial.rglob("checkpoint-*"))
        step = max((int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name))), default=0)
        where = f"checkpoint of step {step}" if step else ""
        if running:
            return StageState(stage=name, state="running", why=where)
        if (line := failure(partial)) is not None:
            return StageState(stage=name, state="failed", why="; ".join(filter(None, (line, where))))
        return StageState(stage=name, state="interrupted", why=where)
    if manifest is None:
        return StageState(stage=name, state="not begun", why="")
    if reason is not None:
        return StageState(stage=name, state="stale", why=reason)
    if manifest.get("leaves") == "verdict" and not manifest["metrics"].get("passed"):
        return StageState(stage=name, state="shut", why="a reward model is not shown to be one")
    return StageState(stage=name, state="done", why="")


def _is_running(folder: Path) -> bool:
    """Whether a run holds the folder's lock."""
    try:
        with (folder / LOCK).open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock yet, or a file system without locks
        return False
    return False


def _verdicts(folder: Path) -> dict[str, int] | None:
    """How many comparisons came out how, as the report shows them."""
    if not (folder / "report.json").is_file():
        return None
    return dict(Counter(map(shown_verdict, read_comparisons(folder))))


def _changed(folder: Path, manifests: dict[str, Manifest]) -> str | None:
    """When a stage last finished or wrote."""
    paths = [*(folder / name / MANIFEST for name in manifests), *folder.glob(".*.partial")]
    if not paths:
        return None
    latest = max(path.stat().st_mtime for path in paths)
    return datetime.datetime.fromtimestamp(latest, datetime.UTC).isoformat(timespec="seconds")


def _size(folder: Path) -> int:
    """Bytes of all files in a folder; what goes meanwhile counts as nothing, and no link is followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total
