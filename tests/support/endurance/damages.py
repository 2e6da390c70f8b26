"""Damages to checkpoints: every file in turn in every way, and what a copy that was cut short leaves."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf.training.checkpoints import good_checkpoint, step_of
from tests.support.endurance.attempts import Disturbance
from tests.support.endurance.campaign import Campaign, Row, wrong


def _flip(place: Callable[[int], int]) -> Callable[[Path], None]:
    """Flip the lowest bit of a byte."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place(len(data))] ^= 1
        path.write_bytes(data)

    return damage


def _cut(size: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size(path.stat().st_size))


def _linked(path: Path) -> None:
    """A symbolic link to the same bytes elsewhere."""
    target = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(target)
    path.symlink_to(target)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


OF_A_FILE: dict[str, Callable[[Path], None]] = {
    "a byte cut off": _cut(lambda size: size - 1),
    "cut in half": _cut(lambda size: size // 2),
    "emptied": _cut(lambda size: 0),
    "bit flipped in the first byte": _flip(lambda size: 0),
    "in the middle": _flip(lambda size: size // 2),
    "in the last byte": _flip(lambda size: size - 1),
    "removed": Path.unlink,
    "a link in its place": _linked,
    "a folder in its place": _folder,
}
"""Name -> what is done to a file, which is not empty."""


def _half_copied(checkpoint: Path) -> None:
    """The second half of the files is not there yet, and the last of the first half is cut."""
    files = files_of(checkpoint)
    for path in files[len(files) // 2 :]:
        path.unlink()
    os.truncate(files[len(files) // 2 - 1], 1)


def _more(checkpoint: Path) -> None:
    (checkpoint / "more.json").write_text("{}", encoding="utf-8")


def _emptied(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


OF_A_FOLDER: dict[str, Callable[[Path], None]] = {
    "half copied": _half_copied,
    "a file more": _more,
    "an empty folder": _emptied,
}
"""Name -> what is done to a checkpoint."""


def files_of(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint, by name."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def newest(checkpoints: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted(checkpoints.glob("checkpoint-*"), key=step_of, reverse=True)


@dataclass(frozen=True)
class Found:
    """What became of a damaged checkpoint."""

    file: str
    damage: str
    used: str | None
    """The checkpoint that is used instead."""
    lines: list[str]
    """What was said."""
    lost: int
    """Files of the damaged one that are no longer there."""


def each(checkpoints: Path) -> Iterator[tuple[str, str, Callable[[Path], None]]]:
    """Every file of the newest checkpoint with every damage, and the damages of the whole: file, damage, how."""
    for path in files_of(newest(checkpoints)[0]):
        name = path.relative_to(newest(checkpoints)[0])
        for damage, how in OF_A_FILE.items():
            if path.stat().st_size:
                yield str(name), damage, lambda checkpoint, how=how, name=name: how(checkpoint / name)
    for damage, how in OF_A_FOLDER.items():
        yield "the folder", damage, how


def look(checkpoints: Path, scratch: Path) -> Iterator[Found]:
    """Damage the newest checkpoint in every way, each time in a fresh copy, and ask for the newest good one.

    Args:
        checkpoints: Folder of at least two.
        scratch: Where the copies are made.
    """
    for file, damage, how in each(checkpoints):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(checkpoints, scratch)
        damaged = newest(scratch)[0]
        how(damaged)
        left = sum(1 for _ in damaged.rglob("*"))
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            used = good_checkpoint(scratch)
        kept = sum(1 for folder in scratch.iterdir() if damaged.name in folder.name for _ in folder.rglob("*"))
        yield Found(file, damage, used.name if used else None, said.getvalue().splitlines(), left - kept)


def damage(campaign: Campaign, stage: str) -> Row:
    """Damage a stage's checkpoints in every way, and have it go on once beside a damaged one."""
    started = time.perf_counter()
    campaign.whole(stage)
    checkpoints = campaign.runs / "whole-1" / stage / "checkpoints"
    last, before = (path.name for path in newest(checkpoints)[:2])
    found = list(look(checkpoints, campaign.folder / "damaged"))
    row = Row("damage", stage, times=len(found))
    row.counts = {
        "Files": len(files_of(newest(checkpoints)[0])),
        "The one before used": sum(one.used == before for one in found),
        "Said in one line": sum(len(one.lines) == 1 and last in one.lines[0] for one in found),
        "Nothing deleted": sum(one.lost == 0 for one in found),
    }
    row.problems = [f"{one.file} {one.damage}: {one.lines}" for one in found if one.used != before]
    job = campaign.begin(f"damage-{stage}", stage)
    events = campaign.whole(stage).events
    saved = [
        number for number, (kind, path) in enumerate(events) if kind == "rename" and "/.partial/checkpoint" in path
    ]
    campaign.server.attempt(job, 1, Disturbance(event=saved[-1] + 1))  # behind the last checkpoint
    for checkpoint in newest(job.folder / f".{stage}.partial" / "checkpoints")[:1]:
        OF_A_FILE["cut in half"](files_of(checkpoint)[-1])
        row.resumed += 1
    campaign.compare(row, job, wrong(campaign.server.attempt(job), job))
    row.seconds = round(time.perf_counter() - started, 1)
    return row
