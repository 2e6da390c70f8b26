"""Where a stage writes until it is done, and how its result gets into place.

A stage's folder is there whole or not at all: it is written beside its place (`.STAGE.partial`) and moved. Whatever
ends a run, the next one finishes what was left half done: after any single step of a move, what is on disk says what is
still to do.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rlhf.artifacts.json_files import read_object, write_json
from rlhf.artifacts.manifest import MANIFEST, artifact_hash, is_finished, read_manifest
from rlhf.config.project import ProjectConfig
from rlhf.durable import rename_durably, sync_folder
from rlhf.errors import UserError
from rlhf.evaluation.kept import KEPT
from rlhf.pipeline import identity
from rlhf.pipeline.folder import partial_dir
from rlhf.training.checkpoints import drop_unscheduled
from rlhf.workflow import CANDIDATES

IDENTITY = "identity.json"
FAILURE = "failure.json"
"""What a stage that failed said last, until it is begun again."""
DATA = "data"
"""Folder of a partial folder with the data that was prepared for the stage."""


def claim(directory: Path, beginning: dict[str, Any], versions: dict[str, str]) -> list[dict[str, str]]:
    """Make a partial folder the place of a stage that begins so; what began so and was interrupted continues there.

    What began otherwise is moved aside (`.STAGE.set-aside-N`), and comes back when the stage is to begin that way
    again: nothing is deleted. Versions may differ: checkpoints outlive them, and days of training are not for an
    upgrade to undo; it is said and recorded. Prepared data stays, it has a key of its own.

    Args:
        directory: The partial folder.
        beginning: What decides which checkpoints it can continue from.
        versions: Of the packages that compute now.

    Returns:
        The versions that worked on the stage so far, the present ones last.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FAILURE).unlink(missing_ok=True)
    sync_folder(directory.parent)
    beginning = json.loads(json.dumps(beginning, default=str))
    stem = directory.with_suffix(".set-aside")
    before = _beginning(directory)
    if before["beginning"] != beginning and _work(directory):
        number = next(n for n in itertools.count(1) if not Path(f"{stem}-{n}").exists())
        aside = Path(f"{stem}-{number}")
        rename_durably(directory, aside)
        directory.mkdir()
        _move_data(aside, directory)
        _say(
            f"{_stage_of(directory)}: what was interrupted cannot go on "
            f"(changed: {changed(before['beginning'], beginning)}) and is kept in {aside}: "
            f"change that back and it continues, or delete it by rm -r {aside}"
        )
    worked = before["versions"]
    if before["beginning"] != beginning:
        worked = []
        for aside in sorted(directory.parent.glob(f"{stem.name}-*")):
            if (kept := _beginning(aside))["beginning"] == beginning:
                worked = kept["versions"]
                _move_data(directory, aside)
                shutil.rmtree(directory)  # nothing else is in it
                rename_durably(aside, directory)
                _say(f"{_stage_of(directory)}: continues with what was kept in {aside}")
                break
    if worked and worked[-1] != versions:
        _say(f"{_stage_of(directory)}: continues what was started with {other_versions(worked[-1], versions)}")
    worked = [*(earlier for earlier in worked if earlier != versions), versions]
    write_json(directory / IDENTITY, {"beginning": beginning, "versions": worked})
    return worked


def interrupted(project: ProjectConfig, name: str) -> dict[str, Any] | None:
    """How a stage began that was interrupted; None where there is nothing to go on with."""
    directory = partial_dir(project, name)
    return _beginning(directory)["beginning"] if directory.is_dir() and _work(directory) else None


def note_failure(directory: Path, line: str) -> None:
    """Note why a stage failed, in its partial folder; of several processes the first to fail is the one that tells.

    Args:
        directory: The partial folder; where there is none, the stage had not begun, and nothing is noted.
        line: What it said.
    """
    with contextlib.suppress(OSError):  # the disk may be what it failed of
        if directory.is_dir() and not (directory / FAILURE).exists():
            write_json(directory / FAILURE, {"error": line})


def failure(directory: Path) -> str | None:
    """What the stage of a partial folder said when it failed; None where it did not, or was begun again."""
    if not (directory / FAILURE).exists():
        return None
    return str(read_object(directory / FAILURE, {"error": str}, "delete it")["error"])


def changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first keys in which two beginnings differ; of one that is not known, that it is not."""
    return ", ".join(identity.changes(before, now)[:4]) if before else f"the form of {IDENTITY}"


def other_versions(before: dict[str, str], now: dict[str, str]) -> str:
    """`torch 2.12.0 (now 2.13.0), …` for the packages whose versions differ."""
    return ", ".join(f"{name} {old} (now {now.get(name)})" for name, old in before.items() if now.get(name) != old)


def _beginning(directory: Path) -> dict[str, Any]:
    """How the work in a folder began, and with which versions; nothing where the file says neither."""
    try:
        kept = json.loads((directory / IDENTITY).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        kept = {}
    return kept if "beginning" in kept else {"beginning": {}, "versions": []}


def _work(directory: Path) -> list[Path]:
    """What a stage has written in a partial folder; an empty folder, as the making of a trainer leaves it, is none."""
    no_work = (DATA, *(name for file in (IDENTITY, FAILURE) for name in (file, f"{file}.partial")))
    children = [child for child in directory.iterdir() if child.name not in no_work]
    return [child for child in children if not child.is_dir() or any(child.iterdir())]


def _move_data(source: Path, target: Path) -> None:
    """Move prepared data, which has a key of its own, in place of what is there."""
    if (source / DATA).is_dir():
        _remove(target / DATA)
        os.replace(source / DATA, target / DATA)


def _stage_of(partial: Path) -> str:
    return partial.name.removeprefix(".").removesuffix(".partial")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def remove_if_empty(directory: Path) -> None:
    """Leave no folder behind in which nothing is."""
    for folder in (directory / DATA, directory):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def is_whole(project: ProjectConfig, name: str) -> bool:
    """Whether a stage is finished but for being moved into place, and is what it would be now.

    Raises:
        UserError: A file that decides what it would be is missing.
    """
    partial = partial_dir(project, name)
    try:
        record = read_manifest(partial)
    except UserError:
        return False
    return (
        record is not None
        and identity.is_current(record, project, name)
        and artifact_hash(partial) == record["artifact"]
    )


def settle(project: ProjectConfig, name: str) -> None:
    """Finish what a run that was killed left undone of moving a stage into place.

    Raises:
        UserError: A file that decides what the stage would be is missing.
    """
    final = project.run_dir / name
    if is_whole(project, name):
        move_into_place(partial_dir(project, name), final)
        _say(f"{name}: was done when the run before was ended, and is in its place now")
    elif is_finished(_old(final)) and not final.exists():
        rename_durably(_old(final), final)
    _tidy(final)


def move_into_place(partial: Path, final: Path) -> None:
    """Put a finished folder, its manifest written, where the stage's artefact belongs; what stood there goes only then.

    The manifest must be the last that was written, after everything else was synced: by it `settle` knows.
    """
    if final.exists():
        _remove(_old(final))
        rename_durably(final, _old(final))
    rename_durably(partial, final)
    _tidy(final)


def _tidy(final: Path) -> None:
    """Delete what the way of a finished stage into its place leaves over."""
    if not is_finished(final):
        return
    _remove(_old(final))
    for name in (DATA, CANDIDATES, KEPT):
        _remove(final / name)
    drop_unscheduled(final / "checkpoints")
    for name in (IDENTITY, FAILURE):
        (final / name).unlink(missing_ok=True)


def _old(final: Path) -> Path:
    """Where what stood in a stage's place is until the new one does."""
    return final.with_name(f".{final.name}.old")


def _remove(folder: Path) -> None:
    """Delete a folder; half deleted it counts as no finished stage."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
