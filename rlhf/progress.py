"""How far the work of a process is: a small file for whoever watches the run, or a bar where nobody does.

A run starts each stage as a process of its own and watches it through a JSON file, which the stage's main process
replaces as it goes on. Any code says what it does by `phase`, `each`, `bar`, `show` and `count_tokens`. Where no
process watches, `bar` is a bar in the terminal, and the others do nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar

_T = TypeVar("_T")

_WRITE_EVERY = 0.3
"""Least seconds between two writes, unless a phase begins or there are new numbers."""
_FEWEST, _SHORTEST = 2, 3.0
"""Units and seconds behind the first unit from which on the time left is estimated."""
_MARKS = 128
"""Most points that a rate is taken from."""


class PhaseState(TypedDict):
    """One phase, as the file has it."""

    what: str
    unit: str
    done: float
    total: float | None
    left: float | None
    """Seconds until its end, by what was measured; null where too little was."""


class Snapshot(TypedDict):
    """The file."""

    at: float
    """Unix time at which it was written."""
    phases: list[PhaseState]
    """What the process does, the outermost first: training, and in it sampling."""
    numbers: dict[str, float]
    """The newest of the numbers that matter for the stage, by how they are shown."""
    tokens_per_second: float | None
    memory_mb: float
    """Peak of the GPU's memory, else what the process holds now."""


class Bar(Protocol):
    """What `bar` gives: a phase, or a bar of tqdm."""

    def update(self, n: float = 1) -> Any:
        """Note that n more units are done."""


class Phase:
    """Something that takes a while.

    Args:
        what: Its name.
        total: Units in all; None where that is not known.
        unit: What is counted.
        done: Units done before it began, in an earlier process.
    """

    def __init__(self, what: str, total: float | None = None, unit: str = "", done: float = 0) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._start = done
        self._marks = _Marks()

    def update(self, n: float = 1) -> None:
        """Note that n more units are done."""
        self.reach(self.done + n)

    def reach(self, done: float) -> None:
        """Note how many units are done in all."""
        self.done = done
        if done > self._start:
            self._marks.add(done)
        _write()

    def state(self) -> PhaseState:
        """How far it is."""
        left = None if self.total is None else self._marks.seconds_for(self.total - self.done)
        return PhaseState(what=self.what, unit=self.unit, done=self.done, total=self.total, left=left)


class _Marks:
    """Times at which something had been reached: what the speed of the later half of them says of the future.

    The first unit is not measured: it has in it what happens once, such as compiling and allocating.
    """

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []

    def add(self, value: float) -> None:
        """Note a value at this moment."""
        self._points.append((time.monotonic(), value))
        if len(self._points) > _MARKS:
            self._points = [*self._points[:-1:2], self._points[-1]]

    def rate(self) -> float | None:
        """Units a second; None where too little was measured."""
        if not self._points:
            return None
        (first_time, first), (last_time, last) = self._points[0], self._points[-1]
        if last - first < _FEWEST or last_time - first_time < _SHORTEST:
            return None
        middle = first_time + (last_time - first_time) / 2
        since_time, since = next(point for point in reversed(self._points) if point[0] <= middle)
        if last == since:
            since_time, since = first_time, first
        return (last - since) / (last_time - since_time)

    def seconds_for(self, units: float) -> float | None:
        """How long so many more units will take."""
        rate = self.rate()
        return None if rate is None else max(0.0, units) / rate


class _Watched:
    """What the process that watches is told."""

    path: Path | None = None
    process = 0
    """The process that writes; not a fork of it."""
    written = 0.0
    phases: list[Phase]
    numbers: dict[str, float]
    tokens: float
    token_marks: _Marks


def watched() -> bool:
    """Whether another process watches this one."""
    return _Watched.path is not None and _Watched.process == os.getpid()


@contextlib.contextmanager
def watching(path: Path | None) -> Iterator[None]:
    """Tell how far this process is in a file; None for nobody watches.

    Args:
        path: The file, which is replaced whole.
    """
    before = _Watched.path, _Watched.process
    _Watched.path, _Watched.process, _Watched.written = path, os.getpid(), 0.0
    _Watched.phases, _Watched.numbers, _Watched.tokens, _Watched.token_marks = [], {}, 0.0, _Marks()
    try:
        yield
    finally:
        _Watched.path, _Watched.process = before


@contextlib.contextmanager
def phase(what: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Phase]:
    """Inside the block, the process does this; arguments as of `Phase`."""
    current = Phase(what, total, unit, done)
    begin(current)
    try:
        yield current
    finally:
        end(current)


def each(items: Sequence[_T], what: str, unit: str) -> Iterator[_T]:
    """The items, and how many of them have been worked on.

    Args:
        items: The items.
        what: What is done with them.
        unit: What they are, in the plural.
    """
    with phase(what, len(items), unit) as current:
        for item in items:
            yield item
            current.update()


def begin(current: Phase) -> None:
    """The process begins with this."""
    if watched():
        _Watched.phases.append(current)
        _write(now=True)


def end(current: Phase) -> None:
    """It has ended, and what began in it as well."""
    if watched() and current in _Watched.phases:
        del _Watched.phases[_Watched.phases.index(current) :]
        _write()


@contextlib.contextmanager
def bar(what: str, total: float | None, unit: str, shown: bool = True, delay: float = 0) -> Iterator[Bar]:
    """A phase where a process watches, else a bar on a terminal.

    Args:
        what: Its name.
        total: Units in all; None where that is not known.
        unit: What is counted, in the plural.
        shown: Whether there is a bar where no process watches.
        delay: Seconds after which the bar appears.
    """
    if watched():
        with phase(what, total, unit) as current:
            yield current
        return
    from tqdm import tqdm

    disable = None if shown else True
    with tqdm(total=total, desc=what, unit=f" {unit}", delay=delay, disable=disable, leave=False) as drawn:
        yield drawn


def show(numbers: Mapping[str, float]) -> None:
    """Give the newest values of the numbers that matter, the most important first."""
    if watched():
        _Watched.numbers = dict(numbers)
        _write(now=True)


def count_tokens(tokens: float) -> None:
    """Note that so many more tokens were trained on, or written."""
    if watched():
        _Watched.tokens += tokens
        _Watched.token_marks.add(_Watched.tokens)
        _write()


def read(path: Path) -> Snapshot | None:
    """What a process told last; None where it has told nothing."""
    try:
        snapshot: Snapshot = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return snapshot


def _write(now: bool = False) -> None:
    moment = time.monotonic()
    if not watched() or (not now and moment - _Watched.written < _WRITE_EVERY):
        return
    _Watched.written = moment
    assert _Watched.path is not None
    snapshot = Snapshot(
        at=time.time(),
        phases=[current.state() for current in _Watched.phases],
        numbers=_Watched.numbers,
        tokens_per_second=_Watched.token_marks.rate(),
        memory_mb=round(_memory_mb()),
    )
    partial = _Watched.path.with_suffix(".partial")
    with contextlib.suppress(OSError):  # a full disk, or nobody watches any more: the work goes on
        partial.write_text(json.dumps(snapshot), encoding="utf-8")
        os.replace(partial, _Watched.path)


def _memory_mb() -> float:
    """Peak of the GPU's memory, else what the process holds now, else its peak."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_reserved()) / 2**20
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20
