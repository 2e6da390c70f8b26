"""The folders of a run: whose it is, who is at work there, where a stage writes, and how its result gets into place.

A stage's folder is there whole or not at all: it is written beside its place (`.STAGE.partial`) and moved.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from rlhf.artifacts.json_files import read_object, write_json
from rlhf.artifacts.rounds import ROUND, VOTES
from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError
from rlhf.pipeline import identity
from rlhf.pipeline.rounds import of_round

OWNER = "project.json"
IDENTITY = "identity.json"
LOCK = ".lock"
"""Held by the one who runs the project; holds the key of that run."""
WORKING = ".working"
"""Held, together, by the processes of a stage."""
_LINGER = 15.0
"""Seconds that the processes of a stage have to end once their run has."""


@dataclass(frozen=True)
class RunLock:
    """A run's folder, held alone."""

    project: ProjectConfig
    key: str
    """What the run's processes show when they join it."""
    made: tuple[Path, ...] = ()
    """Folders that were made for it, inner ones first."""
    new: bool = False
    """Whether there was no run before."""

    def note_overrides(self) -> None:
        """Note how the run differs from its YAML, for commands that name the run alone."""
        _write_owner(self.project)

    def withdraw(self) -> None:
        """Remove a run that never began; an earlier one keeps what it has."""
        if not self.new:
            return
        shutil.rmtree(self.project.run_dir)
        for folder in self.made[1:]:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def own_folder(project: ProjectConfig) -> None:
    """Make the run's folder, or check that it is this project's.

    Raises:
        UserError: It belongs to another config, or holds something that is no run.
    """
    _check_owner(project)
    project.run_dir.mkdir(parents=True, exist_ok=True)
    if not (project.run_dir / OWNER).is_file():
        _write_owner(project)


@contextlib.contextmanager
def locked(project: ProjectConfig) -> Iterator[RunLock]:
    """Lock a run's folder, made if need be, for this run alone; the lock goes with the process, however that ends.

    Nothing of an earlier run is written to before the lock is held.

    Raises:
        UserError: Another run is at work there, the folder belongs to another config or holds something that is no
            run, or it cannot be made.
    """
    run_dir = project.run_dir
    try:
        _check_owner(project)
        made = tuple(folder for folder in (run_dir, *run_dir.parents) if not folder.exists())
        run_dir.mkdir(parents=True, exist_ok=True)
        lock, working = ((run_dir / name).open("a", encoding="utf-8") for name in (LOCK, WORKING))
    except OSError as error:
        raise UserError(f"{run_dir}: {error.strerror}; give another output_dir:") from None
    with lock, working:
        _take(lock, working, run_dir)
        held = RunLock(project, uuid.uuid4().hex, made, not (run_dir / OWNER).is_file())
        own_folder(project)
        lock.truncate(0)
        lock.write(held.key)
        lock.flush()
        fcntl.flock(working, fcntl.LOCK_UN)
        try:
            yield held
        finally:  # whoever joined ends once the lock is free; then the caller may say that the run has ended
            lock.close()
            _within(_LINGER, lambda: _try(working))


def _take(lock: IO[str], working: IO[str], run_dir: Path) -> None:
    """Lock both files alone: no run holds the folder, and no process of an earlier one.

    Raises:
        UserError: Somebody is at work there, or the file system has no locks.
    """

    def nobody_works() -> bool:
        if not _within(1.0, lambda: _try(lock)):  # what ended a moment ago lets go of it a moment later
            raise UserError(f"{run_dir}: another run is at work here; wait for it to end")
        if not (alone := _try(working)):
            fcntl.flock(lock, fcntl.LOCK_UN)  # by which those processes are told that their run has ended
        return alone

    try:
        if not _within(_LINGER, nobody_works):
            raise UserError(f"{run_dir}: processes of an earlier run are still at work here; end them")
        if not os.fstat(lock.fileno()).st_nlink:  # withdrawn by the run that was waited for
            raise UserError(f"{run_dir}: another run removed it a moment ago; start this one again")
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be locked ({error.strerror}); give another output_dir:") from None


def _try(file: IO[str]) -> bool:
    """Lock a file alone, if nobody has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition holds in time, tried again and again."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met


@contextlib.contextmanager
def joined(run_dir: Path, key: str) -> Iterator[None]:
    """Take part in a run as a process of one of its stages, and end when that run ends, however it does.

    As long as one process takes part, no other run can hold the folder.

    Args:
        run_dir: The run's folder.
        key: Of the run that started this process.

    Raises:
        UserError: That run has ended already.
    """
    with (run_dir / WORKING).open("a", encoding="utf-8") as working:
        fcntl.flock(working, fcntl.LOCK_SH)
        if (run_dir / LOCK).read_text(encoding="utf-8") != key:
            raise UserError(f"{run_dir}: the run that started this process has ended")
        threading.Thread(target=_end_with_run, args=(run_dir / LOCK,), daemon=True).start()
        yield


def _end_with_run(lock: Path) -> None:
    """End this process once the run's lock is free: nothing trains behind the user's back."""
    with lock.open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        os._exit(1)


def _check_owner(project: ProjectConfig) -> None:
    """Check that a run's folder, where it is there, is this project's.

    Raises:
        UserError: It belongs to another config, or holds something that is no run.
    """
    folder, owner = project.run_dir, project.run_dir / OWNER
    if owner.is_file():
        other = _read_owner(owner, {"config": str})["config"]
        if other != _config(project):
            raise UserError(
                f"{folder}: belongs to {(folder / other).resolve()}; give {project.path} another name: or output_dir:"
            )
    elif folder.exists() and (
        not folder.is_dir() or any(child.name not in (LOCK, WORKING, ROUND, VOTES) for child in folder.iterdir())
    ):
        raise UserError(f"{folder}: holds something that is not a run; give another name: or output_dir:")


def _config(project: ProjectConfig) -> str:
    """Where the config lies, from the run's folder."""
    return os.path.relpath(project.path.resolve(), project.run_dir.resolve())


def _write_owner(project: ProjectConfig) -> None:
    owner = {"config": _config(project), "name": project.name, "overrides": project.overrides}
    round_of = {"round": project.round} if project.round > 1 else {}
    write_json(project.run_dir / OWNER, {**owner, **round_of})


def _read_owner(owner: Path, fields: dict[str, type]) -> dict[str, Any]:
    remedy = "delete the file if the folder is this project's, and start the run again"
    return read_object(owner, fields, remedy)


def project_of(run_dir: Path) -> ProjectConfig:
    """The project that a run's folder belongs to, with the overrides of its last run; of a round's, that round's.

    Raises:
        UserError: The folder is no run, or its config is gone.
    """
    owner = run_dir / OWNER
    if not owner.is_file():
        raise UserError(f"{run_dir}: not a run (no {OWNER} in it)")
    noted = _read_owner(owner, {"config": str, "overrides": list})
    path = Path(os.path.relpath((run_dir / noted["config"]).resolve()))
    if not path.is_file():
        raise UserError(f"{owner}: names its config {path}, which is not there; write where it is now under config")
    project = load_project(path, noted["overrides"])
    number = noted.get("round", 1)
    first = run_dir if number == 1 else run_dir.parent
    return of_round(replace(project, output_dir=str(first.parent), name=first.name), number)


def partial_dir(project: ProjectConfig, name: str) -> Path:
    """Where a stage writes until it is done."""
    return project.run_dir / f".{name}.partial"


def claim(directory: Path, beginning: dict[str, Any], versions: dict[str, str]) -> list[dict[str, str]]:
    """Make a partial folder the place of a stage that begins so; what began so and was interrupted goes on there.

    What began otherwise is moved aside (`.STAGE.set-aside-N`), and comes back when the stage is to begin that way
    again: nothing is deleted. Versions may differ: checkpoints outlive them, and days of training are not for an
    upgrade to undo; it is said and recorded. Prepared data stays, it has a key of its own.

    Args:
        directory: The partial folder.
        beginning: What decides which checkpoints can be gone on from.
        versions: Of the packages that compute now.

    Returns:
        The versions that worked on the stage so far, the present ones last.
    """
    directory.mkdir(parents=True, exist_ok=True)
    beginning = json.loads(json.dumps(beginning, default=str))
    stem = directory.with_suffix(".set-aside")
    before = _beginning(directory)
    if before["beginning"] != beginning and _work(directory):
        number = next(n for n in itertools.count(1) if not Path(f"{stem}-{n}").exists())
        aside = Path(f"{stem}-{number}")
        _move_work(directory, aside)
        _say(
            f"{_stage_of(directory)}: what was interrupted cannot go on "
            f"(changed: {changed(before['beginning'], beginning)}) and is kept in {aside}: "
            f"change that back and it goes on, or delete it by rm -r {aside}"
        )
    worked = before["versions"]
    if before["beginning"] != beginning:
        worked = []
        for aside in sorted(directory.parent.glob(f"{stem.name}-*")):
            if (kept := _beginning(aside))["beginning"] == beginning:
                worked = kept["versions"]
                _move_work(aside, directory)
                aside.rmdir()
                _say(f"{_stage_of(directory)}: goes on with what was kept in {aside}")
                break
    if worked and worked[-1] != versions:
        _say(f"{_stage_of(directory)}: goes on with what was begun with {other_versions(worked[-1], versions)}")
    worked = [*(earlier for earlier in worked if earlier != versions), versions]
    write_json(directory / IDENTITY, {"beginning": beginning, "versions": worked})
    return worked


def interrupted(project: ProjectConfig, name: str) -> dict[str, Any] | None:
    """How a stage began that was interrupted; None where there is nothing to go on with."""
    directory = partial_dir(project, name)
    return _beginning(directory)["beginning"] if directory.is_dir() and _work(directory) else None


def changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first keys in which two beginnings differ; of one that is not known, that it is not."""
    return ", ".join(identity.changes(before, now)[:4]) if before else f"the form of {IDENTITY}"


def other_versions(before: dict[str, str], now: dict[str, str]) -> str:
    """`torch 2.12.0 (now 2.13.0), …` for the packages whose versions differ."""
    return ", ".join(f"{name} {old} (now {now.get(name)})" for name, old in before.items() if now.get(name) != old)


def _beginning(directory: Path) -> dict[str, Any]:
    """How the work in a folder began, and with which versions; nothing where an earlier form of the file is there."""
    path = directory / IDENTITY
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return kept if "beginning" in kept else {"beginning": {}, "versions": []}


def _work(directory: Path) -> list[Path]:
    """What a stage has written in a partial folder; an empty folder, as the making of a trainer leaves it, is none."""
    children = [child for child in directory.iterdir() if child.name not in ("data", IDENTITY)]
    return [child for child in children if not child.is_dir() or any(child.iterdir())]


def _move_work(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for child in [*_work(source), source / IDENTITY]:
        with contextlib.suppress(FileNotFoundError):  # not noted: the move before was cut short
            os.replace(child, target / child.name)


def _stage_of(partial: Path) -> str:
    return partial.name.removeprefix(".").removesuffix(".partial")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def remove_if_empty(directory: Path) -> None:
    """Leave no folder behind in which nothing is."""
    for folder in (directory / "data", directory):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def move_into_place(partial: Path, final: Path) -> None:
    """Put a finished folder where the stage's artefact belongs; what stood there goes only then."""
    shutil.rmtree(partial / "data", ignore_errors=True)
    (partial / IDENTITY).unlink(missing_ok=True)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    shutil.rmtree(old, ignore_errors=True)
