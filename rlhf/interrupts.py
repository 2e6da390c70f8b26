"""SIGINT and SIGTERM: a training ends after the current step with a checkpoint, everything else at once.

The first signal asks the process to stop, a second one ends it without another word. A signal within a second of the
first is the same request: who ends a group of processes reaches each of them twice, directly and through its parent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rlhf import processes

CONTINUES = "interrupted; the same command continues from the last checkpoint"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME = 1.0
"""Seconds within which a second signal is the same request."""


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to stop.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, as shells have it."""
        return 128 + self.number


class _Process:
    """What this process was asked."""

    listening = 0
    """Process id of the one that listens; a fork of it has the ordinary handlers."""
    asked: int | None = None
    since = 0.0
    deferred = False
    notice: str | None = None
    """What is said where a signal is deferred."""


@contextmanager
def listening() -> Iterator[None]:
    """Handle both signals as this module says; outside the main thread, or inside another such block, do nothing."""
    if threading.current_thread() is not threading.main_thread() or _Process.listening == os.getpid():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    _Process.listening, _Process.asked, _Process.deferred = os.getpid(), None, False
    try:
        yield
    finally:
        _Process.listening, _Process.asked = 0, None
        for number, handler in before.items():
            signal.signal(number, handler)


def asked() -> int | None:
    """The signal by which this process was asked to stop, while it listens."""
    return _Process.asked


@contextmanager
def deferred(notice: str | None = None) -> Iterator[None]:
    """Only note a signal inside the block; `asked` tells of it.

    Args:
        notice: What is said when one comes.

    Raises:
        Interrupted: Behind the block, where a signal came and nobody acted on it.
    """
    with _deferring(True, notice):
        yield
    raise_if_asked()


@contextmanager
def at_once() -> Iterator[None]:
    """Inside `deferred`, a block that a signal may end anywhere.

    Raises:
        Interrupted: A signal came, before the block or in it.
    """
    with _deferring(False):
        raise_if_asked()
        yield


@contextmanager
def _deferring(value: bool, notice: str | None = None) -> Iterator[None]:
    before = _Process.deferred, _Process.notice
    _Process.deferred, _Process.notice = value, notice
    try:
        yield
    finally:
        _Process.deferred, _Process.notice = before


def raise_if_asked() -> None:
    """End, where a signal came that nobody acted on and that is not deferred.

    Raises:
        Interrupted: One did.
    """
    if _Process.asked is not None and not _Process.deferred:
        raise Interrupted(_Process.asked)


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _Process.listening:  # a fork
        if not _loads_data():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    now = time.monotonic()
    if _Process.asked is not None:
        if now - _Process.since > _SAME:
            leave(128 + number)
        return
    _Process.asked, _Process.since = number, now
    if not _Process.deferred:
        raise Interrupted(number)
    if _Process.notice is not None and processes.is_main():
        say(_Process.notice)


def leave(code: int) -> NoReturn:
    """End this process without another word, and those that it started, such as workers of a data loader."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def _loads_data() -> bool:
    """Whether this process is a worker of a data loader, which ends with the process that it works for."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


def say(line: str) -> None:
    """Write a line to stderr; to a pipe whose reader has ended, of the same signal perhaps, nothing is written."""
    try:
        os.write(2, f"{line}\n".encode())
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
