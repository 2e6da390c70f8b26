"""What was made a batch at a time, in files that grow: what an interrupted stage has made, it does not make again.

The processes of a launch call all of this alike: they share the work, and the main one reads and writes the files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from rlhf import processes, progress
from rlhf.durable import sync_folder
from rlhf.evaluation.shares import shared

KEPT = "kept"
"""Folder of a stage that is at work, in which it keeps what it need not do again; deleted once the stage is done."""


class GrowingFile:
    """JSON values, one a line, that are added in batches; a batch is in the file whole or not at all.

    Args:
        path: The file, and its folder, which are made if need be.
        at_once: Lines of a batch.
        count: Lines of the whole file, where that is known: the last batch may be a short one.
    """

    def __init__(self, path: Path, at_once: int = 1, count: int | None = None) -> None:
        self.path = path
        self.done: int = processes.from_main(lambda: _opened(path, at_once, count))
        """Lines that are there."""

    def add(self, batch: Sequence[Any]) -> None:
        """Append a batch; it is on disk when this returns on the main process."""
        if processes.is_main():
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in batch)
                file.flush()
                os.fsync(file.fileno())
        self.done += len(batch)

    def __iter__(self) -> Iterator[Any]:
        """The lines."""
        yield from processes.from_main(self._lines)

    def _lines(self) -> list[Any]:
        with self.path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def grow(path: Path, count: int, at_once: int, make: Callable[[int, int], Sequence[Any]]) -> Iterator[GrowingFile]:
    """Make the missing lines of a file, a round at a time, in which each process makes a batch.

    The last round, which may be shorter, is divided evenly.

    Args:
        path: The file.
        count: Lines of the whole file.
        at_once: Lines of a batch, which one process makes at once.
        make: Makes those from its first argument up to, not including, its second; it calls no other process.

    Yields:
        The file, before each round and at the end.
    """
    round_of = max(1, at_once) * processes.count()
    file = GrowingFile(path, round_of, count)
    yield file
    while file.done < count:
        file.add(shared(file.done, min(file.done + round_of, count), make))
        yield file


def _opened(path: Path, at_once: int, count: int | None) -> int:
    """Make a file, or cut it to the batches that it has whole; returns how many lines are there."""
    done = _whole_batches(path, at_once, count)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        sync_folder(path.parent)
    return done


def _whole_batches(path: Path, at_once: int, count: int | None) -> int:
    """Cut a file to the batches that it has whole; returns how many lines these are."""
    if not path.is_file():
        return 0
    with path.open("rb+") as file:
        ends = [0]
        for line in file:
            if line.endswith(b"\n"):
                ends.append(ends[-1] + len(line))
        lines = len(ends) - 1
        done = lines if lines == count else lines // at_once * at_once
        file.truncate(ends[done])
    return done


class Kept(NamedTuple):
    """A folder of such files, a file for each thing that is made."""

    folder: Path

    def path(self, what: str) -> Path:
        """The file of something, whatever characters its name has."""
        return self.folder / f"{quote(what, safe=' @')}.jsonl"

    def lines(self, what: str, count: int, at_once: int, make: Callable[[int, int], Sequence[Any]]) -> list[Any]:
        """A JSON value for each of `count` items; the batches that are not there yet are made.

        Args:
            what: Names them.
            count: How many.
            at_once: Items of a batch.
            make: Makes those from its first argument up to, not including, its second; it calls no other process.
        """
        with progress.phase(what, count, "rows") if count else contextlib.nullcontext(progress.Phase(what)) as phase:
            for file in grow(self.path(what), count, at_once, make):
                phase.reach(file.done)
        return list(file)

    def once(self, what: str, make: Callable[[], Any]) -> Any:
        """A JSON value that is made once: every process makes it, and that of the main one counts."""
        file = GrowingFile(self.path(what))
        if not file.done:
            file.add([make()])
        return next(iter(file))
