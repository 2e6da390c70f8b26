"""Keeps what is read and written as a run's within the run's folder: no link in it may lead outside.

A run's folder may come from somebody else. A link in it could have a file outside overwritten, taken for part of a
model, or published. The folder itself may be a link, such as to a larger disk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rlhf.errors import UserError


def check_confined(folder: Path) -> None:
    """Check that a folder holds files, folders, and links within itself alone. Where there is no folder, nothing is.

    Raises:
        UserError: A link leads outside or nowhere, or something is a pipe or a device; the line names the first.
    """
    root = folder.resolve()
    for entry in _entries(root):
        shown = folder / Path(entry.path).relative_to(root)
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            there = os.path.exists(target)  # unlike the methods of a Path it takes a circle for nowhere
            if not there or not target.is_relative_to(root):
                raise UserError(
                    f"{shown}: a link that leads {'outside' if there else 'nowhere'}, to {target}; a run "
                    "keeps to its own folder: put what it leads to in its place, or delete it"
                )
        elif not (entry.is_file() or entry.is_dir()):
            raise UserError(f"{shown}: neither a file nor a folder; delete it")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder and its subfolders; what goes meanwhile is left out, and no link is followed."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except FileNotFoundError:
            continue
        yield entry
        if stat.S_ISDIR(mode):
            yield from _entries(Path(entry.path))
