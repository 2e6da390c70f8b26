"""One process of a stage that is to be disturbed: forked from a server that has imported the trainers.

The hook counts what the process does to files below the run's folder, and ends it at one of these moments. It is put in
place here, in the child, and nowhere in the product.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch

from rlhf.pipeline import runner, stage
from rlhf.training import checkpoints

WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Job:
    """What a process runs."""

    config: Path
    stage: str
    run: str
    """Name of the run."""
    folder: Path
    """Of the run."""
    log: Path
    """Takes what it prints."""
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    signal_at: int | None = None
    """Number of the file event at which it sends itself the signal."""
    signal: int = signal.SIGKILL
    torn: bool = False
    """Whether SIGKILL leaves the file that is being written empty or cut in half, instead of untouched."""
    check_space: bool = True
    """Whether a checkpoint looks for free space before it is written."""
    events: Path | None = None
    """Takes the events, as JSON."""


class FileEvents:
    """Counts what this process does to files below a folder, and calls `reached` at one of them."""

    def __init__(self, folder: Path, at: int | None, reached: Callable[[str, Path], None]) -> None:
        self.folder, self.at, self.reached = f"{folder}{os.sep}", at, reached
        self.seen: list[tuple[str, str]] = []
        self.hidden = False

    def install(self) -> None:
        """Listen to opening, renaming and removing (audit events), to fsync, and to what safetensors writes."""
        sys.addaudithook(self._audit)
        fsync, serialize = os.fsync, safetensors.torch.serialize_file

        def synced(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            self._happens("fsync", os.readlink(f"/proc/self/fd/{number}"))
            fsync(file)

        def serialized(tensors: Any, path: Any, metadata: Any = None) -> None:
            self._happens("safetensors", os.fspath(path), lambda: serialize(tensors, path, metadata))
            serialize(tensors, path, metadata)

        os.fsync, safetensors.torch.serialize_file = synced, serialized  # type: ignore[assignment]

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & WRITING:
            if os.path.isdir(arguments[0]):  # a temporary file without a name
                return
            kind = "append" if arguments[2] & os.O_APPEND or not arguments[2] & os.O_TRUNC else "write"
            self._happens(kind, os.path.abspath(arguments[0]))
        elif event in ("os.rename", "os.remove"):
            self._happens(event.removeprefix("os."), os.path.abspath(os.fsdecode(arguments[0])))

    def _happens(self, kind: str, path: str, finish: Callable[[], None] = lambda: None) -> None:
        path = os.path.abspath(path)
        if self.hidden or not path.startswith(self.folder):
            return
        self.seen.append((kind, path.removeprefix(self.folder)))
        if self.at == len(self.seen) - 1:
            self.hidden = True
            finish()
            self.reached(kind, Path(path))
            self.hidden = False


def ends_it(job: Job) -> Callable[[str, Path], None]:
    """Has this process send itself the job's signal at a file event, which it notes beside the log."""

    def reached(kind: str, path: Path) -> None:
        job.log.with_suffix(".event").write_text(f"{kind} {path}", encoding="utf-8")
        if job.signal == signal.SIGKILL and kind == "safetensors":
            os.truncate(path, path.stat().st_size // 2 if job.torn else 0)
        elif job.signal == signal.SIGKILL and kind == "write" and job.torn:
            path.write_bytes(b"")
        os.kill(os.getpid(), job.signal)

    return reached


def run(job: Job) -> None:
    """Run a stage of a project, as `python -m rlhf.pipeline.stage CONFIG STAGE` does."""
    with job.log.open("w", encoding="utf-8") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    os.environ.update(job.environment)
    if not job.check_space:
        checkpoints.check_space = lambda *arguments: None  # type: ignore[assignment]
    events = FileEvents(job.folder, job.signal_at, ends_it(job))
    events.install()
    sys.argv = ["rlhf.pipeline.stage", str(job.config), job.stage, f"name={job.run}", *job.overrides]
    code = stage.main()
    if job.events is not None:
        job.events.write_text(json.dumps(events.seen), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def preloaded() -> list[str]:
    """What the fork server imports in advance."""
    return [*runner._heavy_modules(), __name__]
