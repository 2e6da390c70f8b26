"""Checkpoints that are whole or not there.

A checkpoint is written beside its place. Its manifest comes last, with the size and the SHA-256 of every file; then its
folder is renamed. So what bears a checkpoint's name was complete, and what was damaged since is recognised.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.artifacts.hashing import digest, sha256_file
from rlhf.artifacts.json_files import read_object, write_json
from rlhf.durable import rename_durably, sync_folder, sync_tree
from rlhf.errors import UserError

MANIFEST = "checkpoint.json"
"""Lists the files of a checkpoint."""
_FORMAT = 1
_SPARE = 16 * 2**20
"""Bytes that a save leaves free, for logs and the small files of a checkpoint."""
_NAME = re.compile(r"checkpoint-(\d+)")


def partial_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written; what an earlier attempt left there is removed."""
    shutil.rmtree(folder / ".partial", ignore_errors=True)
    partial = folder / ".partial" / f"checkpoint-{step}"
    partial.mkdir(parents=True)
    return partial


def check_space(folder: Path, size: int) -> None:
    """Check that a checkpoint fits, before any of it is written.

    Args:
        folder: Where it will be; it exists.
        size: Bytes that it takes.

    Raises:
        UserError: It does not.
    """
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        raise UserError(
            f"{folder}: a checkpoint needs {(size + _SPARE) / 1e6:,.0f} MB of free space, and {free / 1e6:,.0f} MB are "
            "free; make room, or keep fewer checkpoints (save_total_limit), and start the run again"
        )


def seal(partial: Path, step: int, scheduled: bool = True) -> Path:
    """Complete a checkpoint: list its files, have everything on disk, and give it its name.

    Args:
        partial: The folder with its files (`partial_folder`).
        step: The optimizer step behind which it was taken.
        scheduled: Whether the settings ask for one there; a signal asks for others.

    Returns:
        The folder that it is in now.
    """
    files = {
        path.relative_to(partial).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file()
    }
    sync_tree(partial)
    manifest = {"format": _FORMAT, "step": step, "scheduled": scheduled, "files": files}
    write_json(partial / MANIFEST, {**manifest, "digest": digest(manifest)})
    final = partial.parent.parent / partial.name
    if final.exists():  # of the same step, and therefore the same
        shutil.rmtree(partial.parent)
    else:
        rename_durably(partial, final)
        partial.parent.rmdir()
    return final


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, all of whose files are as it says.

    Raises:
        UserError: The manifest is missing or damaged; or a file is missing, of another size, with other contents, a
            symbolic link, or not in the manifest.
    """
    try:
        return _read_checkpoint(checkpoint)
    except OSError as error:  # a name that no file can have, say
        raise UserError(f"{checkpoint / MANIFEST}: {(error.strerror or str(error)).lower()}") from None


def _read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The manifest; raises OSError where the file system does."""
    path = checkpoint / MANIFEST
    fields = {"format": int, "step": int, "scheduled": bool, "files": dict, "digest": str}
    manifest = read_object(path, fields, "the checkpoint cannot be used")
    if path.is_symlink():
        raise UserError(f"{path}: lies outside of its checkpoint")
    if not path.read_bytes().endswith(b"}\n"):
        raise UserError(f"{path}: is cut short")
    if manifest["format"] != _FORMAT:
        raise UserError(f"{path}: has format {manifest['format']}, not {_FORMAT}")
    if digest({name: value for name, value in manifest.items() if name != "digest"}) != manifest["digest"]:
        raise UserError(f"{path}: has other contents than were written")
    if manifest["step"] != step_of(checkpoint):
        raise UserError(f"{path}: is that of step {manifest['step']}")
    there = {found.relative_to(checkpoint).as_posix() for found in checkpoint.rglob("*") if not found.is_dir()}
    if more := sorted(there - {MANIFEST, *manifest["files"]}):
        raise UserError(f"{checkpoint / more[0]}: was not written with its checkpoint")
    for name, recorded in manifest["files"].items():
        path = checkpoint / name
        if ".." in Path(name).parts or Path(name).is_absolute() or path.is_symlink():
            raise UserError(f"{path}: lies outside of its checkpoint")
        if not path.is_file():
            raise UserError(f"{path}: is missing")
        if not isinstance(recorded, dict) or path.stat().st_size != recorded.get("bytes"):
            raise UserError(f"{path}: has {path.stat().st_size} bytes, not those that were written")
        if sha256_file(path) != recorded.get("sha256"):
            raise UserError(f"{path}: has other contents than were written")
    return manifest


def step_of(checkpoint: Path) -> int:
    """The optimizer step behind which a checkpoint was taken, as its name says."""
    return int(checkpoint.name.rpartition("-")[2])


def good_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written; damaged ones are named, renamed and passed over.

    Args:
        folder: Of all checkpoints of a training.

    Returns:
        None where there is none.
    """
    there = list(_checkpoints(folder))
    while there:
        checkpoint = there.pop()
        try:
            read_checkpoint(checkpoint)
            return checkpoint
        except UserError as error:
            aside = _aside(checkpoint)
            checkpoint.rename(aside)
            sync_folder(folder)
            instead = f"{there[-1].name} is taken instead" if there else "training begins anew, as there is none before"
            what = str(error).removeprefix(f"{checkpoint}{os.sep}")
            print(f"{checkpoint} is damaged ({what}); it is kept as {aside.name}, and {instead}", file=sys.stderr)
    return None


def _aside(checkpoint: Path) -> Path:
    """A name for a damaged checkpoint, which is kept, that no other has."""
    names = itertools.chain(
        [f"damaged-{checkpoint.name}"], (f"damaged-{checkpoint.name}.{n}" for n in itertools.count(2))
    )
    return next(path for path in map(checkpoint.with_name, names) if not path.exists())


def drop_old(folder: Path, limit: int | None, best: str | None) -> None:
    """Delete checkpoints beyond a number, oldest first; never the newest, which was just written, nor the best.

    One that a signal asked for goes as soon as there is a newer one, so that those that are left do not depend on it.
    What a run was deleting when it was killed is deleted, too.

    Args:
        folder: Of all checkpoints.
        limit: How many are kept; None or 0 keeps all.
        best: Path of the one with the best metric, where one is measured.
    """
    for doomed in folder.glob(".checkpoint-*"):
        shutil.rmtree(doomed, ignore_errors=True)
    checkpoints = list(_checkpoints(folder))
    kept = {*checkpoints[-1:], *(path for path in checkpoints if best is not None and path.name == Path(best).name)}
    dropped = [path for path in checkpoints if path not in kept and not is_scheduled(path)]
    surplus = [path for path in checkpoints if path not in kept and path not in dropped]
    if limit:
        dropped += surplus[: max(0, len(surplus) + len(kept) - max(limit, len(kept)))]
    for checkpoint in dropped:
        doomed = checkpoint.with_name(f".{checkpoint.name}")  # so that none is there in part
        checkpoint.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def drop_unscheduled(folder: Path) -> None:
    """Delete, behind a training, what only signals asked for, and the folder if nothing else is in it."""
    for checkpoint in _checkpoints(folder):
        if not is_scheduled(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def is_scheduled(checkpoint: Path) -> bool:
    """Whether the settings asked for a checkpoint; of one that does not say, that they did."""
    try:
        return bool(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["scheduled"])
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _checkpoints(folder: Path) -> Iterator[Path]:
    """The checkpoints in a folder, by step."""
    named = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    yield from (path for _, path in sorted(named))
