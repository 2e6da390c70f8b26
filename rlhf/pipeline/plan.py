"""Which stages of a project run, and why: what is not done, and what came from something else than it would now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rlhf
from rlhf.artifacts.manifest import read_manifest, versions
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError, unknown_name
from rlhf.pipeline import identity, partial
from rlhf.workflow import gates_of, is_stage, parents_of, planned, stage_of


@dataclass(frozen=True)
class Plan:
    """What a run will do with one stage."""

    stage: str
    reason: str | None
    """Why it runs; None where it is done."""
    note: str = ""
    """What else is to be known of a stage that is done."""


def plan(project: ProjectConfig, only: Sequence[str] = (), force: Sequence[str] = ()) -> list[Plan]:
    """Which stages run, in order, and why.

    Args:
        project: The project.
        only: Stages to consider; all if empty.
        force: Stages to run again although they are done.

    Raises:
        UserError: A stage is not one of the project's, or needs one that is neither done nor asked for.
    """
    stages = planned(project)
    for name in (*only, *force):
        if name not in stages and is_stage(name) and (absent := stage_of(name).absent) is not None:
            raise UserError(f"{project.path}: no stage {name!r}: {absent(project)}")
        if name not in stages:
            raise UserError(f"{project.path}: no stage {name!r}; {unknown_name(name, stages)}")
    plans: list[Plan] = []
    running: set[str] = set()
    for name in stages:
        if only and name not in only:
            continue
        reason = _why(project, name, running, name in force)
        missing = [
            parent for parent in (*parents_of(project, name), *gates_of(project, name))
            if parent not in running and read_manifest(project.run_dir / parent) is None
        ]  # fmt: skip
        if later := [parent for parent in missing if parent in stages[stages.index(name) :]]:
            raise UserError(f"{name} needs {', '.join(later)}, which comes after it: rlhf run --only can run it first")
        if missing:
            raise UserError(
                f"{name} needs {', '.join(missing)}, not done yet: rlhf run without --only runs all in order"
                + (", and stops at a shut gate (--gate warn goes on)" if _gated(project, missing) else "")
            )
        if reason is not None:
            _check_gate_current(project, name, running)
            running.add(name)
        plans.append(Plan(name, reason, _note(project, name) if reason is None else ""))
    return plans


def _gated(project: ProjectConfig, names: Sequence[str]) -> bool:
    return any(gates_of(project, name) for name in names)


def _check_gate_current(project: ProjectConfig, name: str, running: set[str]) -> None:
    """Check that a stage's gate, where it is not asked in this run, was asked about the models as they are now.

    Raises:
        UserError: It was not, and the run is to stop at a shut gate.
    """
    for gate in gates_of(project, name):
        if gate in running or project.gate == "warn":
            continue
        if (why := _why(project, gate, running, forced=False)) is not None:
            raise UserError(f"{name} needs {gate}, whose answer is out of date ({why}): add {gate} to --only")


def _why(project: ProjectConfig, name: str, running: set[str], forced: bool) -> str | None:
    """Why a stage has to run, or None."""
    record = read_manifest(project.run_dir / name)
    upstream = [parent for parent in parents_of(project, name) if parent in running]
    if record is None:
        return "not done yet" + ("" if upstream else _changed_since_it_began(project, name))
    if forced:
        return "forced"
    if upstream:
        return f"{upstream[0]} runs again"
    if (made_by := record["identity"].get("package", rlhf.__version__)) != rlhf.__version__:
        return f"made by rlhf {made_by}, and this is {rlhf.__version__}"
    if identity.is_current(record, project, name):
        return None
    return f"changed: {', '.join(identity.changes(record['identity'], _identity(project, name))[:4])}"


def _changed_since_it_began(project: ProjectConfig, name: str) -> str:
    """Why a stage that was interrupted will not go on, where it will not."""
    before = partial.interrupted(project, name)
    if before is None:
        return ""
    now = identity.beginning(project, name, _identity(project, name))
    before = {key: before[key] for key in before if key in now}
    return f"; begins anew, changed since it was interrupted: {partial.changed(before, now)}" if before != now else ""


def _identity(project: ProjectConfig, name: str) -> dict[str, Any]:
    """A stage's identity as a record holds it."""
    return identity.as_recorded(identity.identity(project, name))


def _note(project: ProjectConfig, name: str) -> str:
    """Versions of the libraries that a finished stage was made with, where they are others now.

    They do not make it stale: an upgrade is no reason to train for days again unasked.
    """
    manifest = read_manifest(project.run_dir / name)
    others = partial.other_versions(manifest["versions"], versions()) if manifest else ""
    return f" (made with {others}; --force {name} makes it again)" if others else ""
