"""Kill this process, as far as its files can tell, before any one of its changes to a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open"}
_WRITES = os.O_WRONLY | os.O_RDWR


class Killed(BaseException):
    """What SIGKILL would have done; nothing is written after it, by no `finally` either."""


class _Death:
    """Counts the changes to a folder and dies at one of them."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.left = -1
        """Changes until it dies; below 0 it does not, at 0 it is dead."""
        self.torn = False
        self.seen: list[str] = []
        sys.addaudithook(self)  # which cannot be removed

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or event not in _CHANGES or not self._concerns(event, args):
            return
        self.seen.append(event)
        if self.left > 0:
            self.left -= 1
        if self.left == 0:
            if self.torn and event == "open":
                self.torn, folder, self.folder = False, self.folder, None
                Path(args[0]).write_bytes(b"")  # opened, and nothing written yet
                self.folder = folder
            raise Killed

    def _concerns(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "open" and not args[2] & _WRITES:
            return False
        if not isinstance(args[0], str | os.PathLike) or not Path(args[0]).is_absolute():
            return event != "open"  # by a descriptor, within a folder that is being deleted
        return Path(args[0]).is_relative_to(self.folder)


_death = _Death()


@contextmanager
def killed_at(change: int, folder: Path, torn: bool = False) -> Iterator[None]:
    """Die before change number `change`, from 1 on, to what a folder holds; 0 for never.

    Args:
        change: The number.
        folder: Whose changes count.
        torn: Whether a file that would have been written is left empty.
    """
    _death.folder, _death.left, _death.torn, _death.seen = folder, change or -1, torn, []
    try:
        yield
    finally:
        _death.folder = None


def at_every_change(folder: Path, reset: Callable[[], None], act: Callable[[], object]) -> Iterator[str]:
    """Do something again and again, dying at each of its changes in turn, and hand over where.

    Args:
        folder: Whose changes count.
        reset: Puts the folder as it was before.
        act: What is killed.
    """
    reset()
    with killed_at(0, folder):
        act()
    changes = list(_death.seen)
    assert changes
    for number, change in enumerate(changes, start=1):
        for torn in (False, True) if change == "open" else (False,):
            reset()
            try:
                with killed_at(number, folder, torn):
                    act()
            except Killed:
                yield f"change {number} of {len(changes)}: {change}{', torn' if torn else ''}"
