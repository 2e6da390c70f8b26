"""What a run shows of itself: here in lines, for a file, CI or a scheduler; `live` redraws a terminal.

The run's own process calls `look` a few times a second while a stage's processes work. They tell how far they are in a
file (`rlhf.progress`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

from rlhf import progress
from rlhf.pipeline.plan import Plan
from rlhf.progress import PhaseState, Snapshot

POLL_SECONDS = 0.2
"""Seconds between two looks at a stage."""
FIRST, EVERY = 10.0, 30.0
"""Seconds until the first line about a stage, and between two."""


class Watch(NamedTuple):
    """How a stage's processes tell what they do."""

    progress: Path
    """The file in which the main process tells how far it is."""
    output: Path | None
    """Where everything that they print goes; None leaves it on the terminal."""

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes] | None]:
        """The file of the output, open to be written to by another process; None where there is none."""
        if self.output is None:
            yield None
            return
        with self.output.open("ab") as file:
            yield file

    def take_output(self) -> None:
        """Send what this process prints from now on to the file."""
        if self.output is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(self.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.close(file)


class View:
    """Says in lines what a run does.

    Args:
        say: Told a line at a time.
        first: Seconds until the first line about how far a stage is.
        every: Seconds between two such lines.
    """

    redraws = False
    """Whether what stages print would tear what is shown."""

    def __init__(self, say: Callable[[str], None] = print, first: float = FIRST, every: float = EVERY) -> None:
        self.say, self.first, self.every = say, first, every
        self.stage: str | None = None
        self.began, self.due = 0.0, 0.0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> View:
        self._folder = tempfile.TemporaryDirectory(prefix="rlhf-view-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def watch(self) -> Watch:
        """What the processes of the next stage are given; what the last one told is forgotten."""
        assert self._folder is not None, "a view is entered before it shows something"
        folder = Path(self._folder.name)
        watch = Watch(folder / "progress.json", folder / "output" if self.redraws else None)
        watch.progress.unlink(missing_ok=True)
        return watch

    def snapshot(self) -> Snapshot | None:
        """What the stage at work told last."""
        return None if self._folder is None else progress.read(Path(self._folder.name) / "progress.json")

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Around the start of a process that goes on behind it, and whose output must not tear what is shown."""
        yield

    def planned(self, plans: Sequence[Plan]) -> None:
        """Which stages run, and why."""
        for plan in plans:
            self.say(f"{plan.stage}: {plan.reason or 'done'}{plan.note}")

    def checks(self, stage: str | None = None) -> None:
        """The data of a stage is being read; of None, that of all that follow will be."""
        if stage is None:
            self.say("checking data")
        else:
            self._start(stage)

    def checked(self) -> None:
        """All data has been read."""
        self.stage = None

    def begins(self, stage: str) -> None:
        """A stage begins."""
        self.say(f"running {stage}")
        self._start(stage)

    def ended(self, stage: str) -> None:
        """It is done."""
        self.say(f"{stage} done in {time.monotonic() - self.began:.0f} s")
        self.stage = None

    def look(self) -> None:
        """Called while a stage is at work, and once behind it."""
        now = time.monotonic()
        if self.stage is None or now < self.due:
            return
        snapshot = self.snapshot()
        if snapshot is not None and snapshot["phases"]:
            self.due = now + self.every
            self.say(line(self.stage, snapshot))

    def _start(self, stage: str) -> None:
        self.stage, self.began = stage, time.monotonic()
        self.due = self.began + self.first


class Quiet(View):
    """Shows nothing; what is wrong is said by who finds it."""

    def __init__(self) -> None:
        super().__init__(lambda text: None)


def line(stage: str, snapshot: Snapshot) -> str:
    """How far a stage is, in one line."""
    outer = snapshot["phases"][0]
    left = seconds_left(snapshot)
    parts = [counted(outer), *figures(snapshot)]
    if len(snapshot["phases"]) > 1:
        parts.append(innermost(snapshot))
    if left is not None:
        parts.append(f"{timedelta(seconds=round(left))} left")
    return f"{stage}: {', '.join(parts)}"


def counted(phase: PhaseState) -> str:
    """`training 20/100 steps`."""
    if phase["total"] is None and not phase["done"]:
        return phase["what"]
    of = "" if phase["total"] is None else f"/{phase['total']:,.0f}"
    return f"{phase['what']} {phase['done']:,.0f}{of} {phase['unit']}".rstrip()


def innermost(snapshot: Snapshot) -> str:
    """What the outermost phase is doing, and how long it will be at it."""
    inner = snapshot["phases"][-1]
    left = "" if inner["left"] is None else f" ({timedelta(seconds=round(inner['left']))} left)"
    return counted(inner) + left


def figures(snapshot: Snapshot) -> list[str]:
    """The numbers that matter, then speed and memory."""
    texts = [f"{name} {value:.4g}" for name, value in snapshot["numbers"].items()]
    if snapshot["tokens_per_second"]:
        texts.append(f"{snapshot['tokens_per_second']:,.0f} tokens/s")
    texts.append(f"{snapshot['memory_mb'] / 1024:.1f} GB")
    return texts


def seconds_left(snapshot: Snapshot) -> float | None:
    """Seconds until the outermost phase ends, now; None where too little was measured."""
    left = snapshot["phases"][0]["left"] if snapshot["phases"] else None
    return None if left is None else max(0.0, left - (time.time() - snapshot["at"]))
