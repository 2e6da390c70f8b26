"""What an input is, how it is put into a box, and what must hold of a command that reads it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.sandbox import Box, Ended

CODES = (0, 2, 3, 4)
"""Done, the user's input, a shut gate, a number that is not finite."""
LONGEST = 1500
"""Most characters of an error's line."""
_NOTES = ("stdout", "stderr", "outside")
_ALLOWED = {"__pycache__", "torchinductor_root"}
"""Caches of Python and torch, which their next start uses again."""
_LINE = re.compile(r"^(error|stopped): ", re.MULTILINE)
_TRACEBACK_FILE = re.compile(r"\S*-traceback\S*\.txt")


@dataclass(frozen=True)
class Special:
    """What stands in a file's place: `folder`, `fifo`, `socket`, `gone`, `unreadable`, `link TARGET`."""

    what: str


Content = bytes | Special


@dataclass(frozen=True)
class Input:
    """A command and the files it reads, besides those of the world."""

    kind: str
    """`config`, `data`, `model`, `reward` or `artefact`."""
    what: str
    """What was done to a good input."""
    command: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    """By path from the current folder."""
    run: bool = False
    """Whether the command finds the finished run of the world."""
    trains: bool = False
    """Whether `rlhf run` trains."""
    limit: float = 60.0
    """Seconds within which the command ends."""

    def put(self, world: Path, box: Box) -> None:
        """Copy the world into a box, and these files over it."""
        shutil.copytree(world / "project", box.work, dirs_exist_ok=True, symlinks=True)
        if self.run:
            shutil.copytree(world / "run", box.work / "runs", symlinks=True)
        for name, content in self.files.items():
            put(box.work / name, content)


def put(path: Path, content: Content) -> None:
    """Write a file, or what stands in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (isinstance(content, Special) and content.what == "unreadable"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content.what == "folder":
        path.mkdir()
    elif content.what == "fifo":
        os.mkfifo(path)
    elif content.what == "socket":
        made, here = socket.socket(socket.AF_UNIX), os.getcwd()
        try:
            os.chdir(path.parent)
            made.bind(path.name)
        finally:
            os.chdir(here)
            made.close()
    elif content.what == "unreadable":
        path.touch()
        path.chmod(0)
    elif content.what.startswith("link "):
        path.symlink_to(content.what.removeprefix("link "))
    else:
        assert content.what == "gone", content.what


State = dict[str, tuple[int, int, int]]


def state_of(folder: Path) -> State:
    """Mode, size and time of change of everything below a folder, by path."""
    found: State = {}
    for path in _below(folder):
        about = path.lstat()
        size, time = (0, 0) if stat.S_ISDIR(about.st_mode) else (about.st_size, about.st_mtime_ns)
        found[str(path.relative_to(folder))] = (about.st_mode, size, time)
    return found


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(root) / name


def message(box: Box) -> str:
    """The line that a command ended with, or nothing."""
    return next((line for line in box.read("stderr").splitlines() if _LINE.match(line)), "")


def problems(given: Input, ended: Ended, box: Box, before: State) -> list[str]:
    """What does not hold of a command that has ended: nothing, if all is well.

    Args:
        given: What it was given.
        ended: How it ended.
        box: Where it ran.
        before: The box before it ran.
    """
    errors, found = box.read("stderr"), []
    if ended.code is None:
        found.append(f"not ended after {given.limit:g} s")
    elif ended.code not in CODES:
        found.append(f"exit code {ended.code}")
    lines = len(_LINE.findall(errors))
    if ended.code is not None and lines != (ended.code != 0):
        found.append(f"{lines} error lines with exit code {ended.code}")
    line = message(box)
    if len(line) > LONGEST:
        found.append("a line that is too long")
    if line and not line.isprintable():
        found.append("a line that does not print")
    if line and not line.partition(": ")[2].strip():
        found.append("a line that says nothing")
    if "Traceback (most recent call last)" in errors + box.read("stdout"):
        found.append("a traceback")
    return [*found, *_left(given, ended, box, before, errors)]


def _left(given: Input, ended: Ended, box: Box, before: State, errors: str) -> Iterator[str]:
    """Files where none belong."""
    for line in sorted(set(box.read("outside").splitlines())):
        yield f"written outside: {line}"
    named = {Path(match).name for match in _TRACEBACK_FILE.findall(errors)}
    after = state_of(box.folder)
    runs = ["work/runs", *(name.removesuffix("/.lock") for name in after if name.endswith("/.lock"))]
    for name in sorted({name for name in {*before, *after} if before.get(name) != after.get(name)}):
        place = Path(name)
        if place.name in named or name in _NOTES or _ALLOWED & set(place.parts):
            continue
        if not any(f"{name}/".startswith(f"{run}/") or f"{run}/".startswith(f"{name}/") for run in runs):
            yield f"{'left' if name in after else 'removed'}: {name}"
        elif name.endswith((".new", ".tmp")):
            yield f"half-written: {name}"
        elif ended.code and not (given.run or given.trains):
            yield f"left by a refused run: {name}"
        elif ended.code and given.run and given.command[0] in ("report", "publish", "chat", "arena"):
            yield f"changed by a refused command: {name}"
