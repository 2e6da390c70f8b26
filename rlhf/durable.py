"""Files and folders that are on disk whole or not at all, whatever ends the process, the machine or its power.

A rename is atomic, but says nothing of contents: without `fsync` a file can have its new name and no bytes. So what is
written is synced first, then renamed, and then the folder that holds the name is synced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync_file(path: Path) -> None:
    """Have the contents of a file on disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, not what they stand for."""
    _sync(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))


def sync_tree(folder: Path) -> None:
    """Have a folder on disk with everything in it. Symbolic links are not followed."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                sync_file(path)
        sync_folder(Path(parent))


def rename_durably(source: Path, target: Path) -> None:
    """Rename a file or a folder whose contents are synced already; a file or an empty folder is replaced."""
    os.replace(source, target)
    for folder in {source.parent, target.parent}:
        sync_folder(folder)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of another once the block has ended; where it raises, nothing changes.

    Args:
        path: The file in the end.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        sync_file(partial)
        rename_durably(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
