"""The folder of a run: whose it is, and who is at work there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from rlhf.artifacts.confined import check_confined
from rlhf.artifacts.json_files import read_object, write_json
from rlhf.artifacts.rounds import ROUND, VOTES
from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig
from rlhf.durable import rename_durably, sync_folder
from rlhf.errors import UserError
from rlhf.interrupts import Interrupted, leave
from rlhf.pipeline.rounds import of_round

OWNER = "project.json"
LOCK = ".lock"
"""Held by the one who runs the project; holds the key of that run."""
WORKING = ".working"
"""Held, together, by the processes of a stage."""
_BEFORE_OWNER = {LOCK, WORKING, ROUND, VOTES, *(f"{name}.partial" for name in (OWNER, ROUND))}
"""What a run's folder can hold before it says whose it is; the last are left where a process is killed as it writes."""
_SAVING = 40.0
"""Seconds that they have to save, where a signal ends their run."""
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
        withdrawn = _withdrawn(self.project)
        shutil.rmtree(withdrawn, ignore_errors=True)
        rename_durably(self.project.run_dir, withdrawn)
        shutil.rmtree(withdrawn)
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
            run or a link that leads outside, or it cannot be made.
    """
    run_dir = project.run_dir
    try:
        check_confined(run_dir)
        _check_owner(project)
        made = tuple(folder for folder in (run_dir, *run_dir.parents) if not folder.exists())
        run_dir.mkdir(parents=True, exist_ok=True)
        for folder in made:
            sync_folder(folder.parent)
        lock, working = ((run_dir / name).open("a", encoding="utf-8") for name in (LOCK, WORKING))
    except OSError as error:
        raise UserError(f"{run_dir}: {error.strerror}; give another output_dir:") from None
    with lock, working:
        _take(lock, working, run_dir)
        shutil.rmtree(_withdrawn(project), ignore_errors=True)
        held = RunLock(project, uuid.uuid4().hex, made, not (run_dir / OWNER).is_file())
        own_folder(project)
        lock.truncate(0)
        lock.write(held.key)
        lock.flush()
        fcntl.flock(working, fcntl.LOCK_UN)
        try:
            yield held
        except Interrupted:  # whoever joined was asked to stop too, and saves what it has
            _within(_SAVING, lambda: _try(working))
            raise
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
        if not _is_at(run_dir / LOCK, lock):  # withdrawn by the run that was waited for
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


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition holds in time, tried again and again."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met


@contextlib.contextmanager
def joined(run_dir: Path, key: str, leads: bool = True) -> Iterator[None]:
    """Take part in a run as a process of one of its stages, and end when that run ends, however it does.

    As long as one process takes part, no other run can hold the folder.

    Args:
        run_dir: The run's folder.
        key: Of the run that started this process.
        leads: Whether the run's lock is held on this node; on others a lock may not be seen, and who started the
            process ends it.

    Raises:
        UserError: That run has ended already.
    """
    with (run_dir / WORKING).open("a", encoding="utf-8") as working:
        fcntl.flock(working, fcntl.LOCK_SH)
        if (run_dir / LOCK).read_text(encoding="utf-8") != key:
            raise UserError(f"{run_dir}: the run that started this process has ended")
        if leads:
            threading.Thread(target=_end_with_run, args=(run_dir / LOCK,), daemon=True).start()
        yield


def _end_with_run(lock: Path) -> None:
    """End this process once the run's lock is free: nothing trains behind the user's back."""
    with lock.open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        leave(1)


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
        not folder.is_dir() or any(child.name not in _BEFORE_OWNER for child in folder.iterdir())
    ):
        raise UserError(f"{folder}: holds something that is not a run; give another name: or output_dir:")


def _withdrawn(project: ProjectConfig) -> Path:
    """Where the folder of a run that never began is moved to be deleted: half deleted it would be nobody's run."""
    return project.run_dir.with_name(f".{project.run_dir.name}.withdrawn")


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
        UserError: The folder is no run, its config is gone or lies in the run itself, or a link in it leads outside.
    """
    owner = run_dir / OWNER
    if not owner.is_file():
        raise UserError(f"{run_dir}: not a run (no {OWNER} in it)")
    check_confined(run_dir)
    noted = _read_owner(owner, {"config": str, "overrides": list})
    whole = (run_dir / noted["config"]).resolve()
    path = Path(os.path.relpath(whole))
    if whole.is_relative_to(run_dir.resolve()):
        raise UserError(
            f"{owner}: names its config {path}, which lies in the run itself: somebody else may have written it; move "
            "it out of there, and write where it is now under config"
        )
    if not path.is_file():
        raise UserError(f"{owner}: names its config {path}, which is not there; write where it is now under config")
    project = load_project(path, noted["overrides"])
    number = noted.get("round", 1)
    first = run_dir if number == 1 else run_dir.parent
    return of_round(replace(project, output_dir=str(first.parent), name=first.name), number)


def partial_dir(project: ProjectConfig, name: str) -> Path:
    """Where a stage writes until it is done."""
    return project.run_dir / f".{name}.partial"
