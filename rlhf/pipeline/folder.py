"""The folders of a run: whose it is, where a stage writes until it is done, and how its result gets into place.

A stage's folder is there whole or not at all: it is written beside its place (`.STAGE.partial`) and moved.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.config import ProjectConfig, load_project
from rlhf.errors import UserError
from rlhf.pipeline import contract

OWNER = "project.json"
IDENTITY = "identity.json"
LOCK = ".lock"


def own_folder(project: ProjectConfig) -> None:
    """Make the run's folder, or hold that it is this project's; note the overrides for commands that name the run.

    Raises:
        UserError: It belongs to another config, or holds something that is no run.
    """
    folder, owner = project.run_dir, project.run_dir / OWNER
    config = os.path.relpath(project.path.resolve(), folder.resolve())
    if owner.is_file():
        other = json.loads(owner.read_text(encoding="utf-8"))["config"]
        if other != config:
            raise UserError(
                f"{folder}: belongs to {(folder / other).resolve()}; give {project.path} another name: or output_dir:"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds something that is not a run; give another name: or output_dir:")
    folder.mkdir(parents=True, exist_ok=True)
    contract.write_json(owner, {"config": config, "name": project.name, "overrides": project.overrides})


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder alone; the lock goes with the process, however that ends.

    Raises:
        UserError: Another run is at work there.
    """
    with (run_dir / LOCK).open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{run_dir}: another run is at work here; wait for it to end") from None
        yield


def project_of(run_dir: Path) -> ProjectConfig:
    """The project that a run's folder belongs to, with the overrides of its last run.

    Raises:
        UserError: The folder is no run, or its config is gone.
    """
    owner = run_dir / OWNER
    if not owner.is_file():
        raise UserError(f"{run_dir}: not a run (no {OWNER} in it)")
    noted = json.loads(owner.read_text(encoding="utf-8"))
    path = Path(os.path.relpath((run_dir / noted["config"]).resolve()))
    project = load_project(path, noted["overrides"])
    return replace(project, output_dir=str(run_dir.parent), name=run_dir.name)


def partial_dir(project: ProjectConfig, name: str) -> Path:
    """Where a stage writes until it is done."""
    return project.run_dir / f".{name}.partial"


def claim(directory: Path, identity: dict[str, Any]) -> None:
    """Make a partial folder this identity's own: what another identity left in it is dropped, prepared data excepted.

    Prepared data has a key of its own and is used again only where that still fits.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / IDENTITY
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(identity, default=str)):
        return
    for child in directory.iterdir():
        if child.name == "data":
            continue
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    contract.write_json(path, identity)


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
