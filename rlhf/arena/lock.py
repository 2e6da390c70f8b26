"""Lets one arena of a run be open at a time: two would prepare, and pay for, every comparison twice."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from rlhf.data.votes import FOLDER
from rlhf.errors import UserError

LOCK = ".lock"
"""Held by the arena that is open."""


@contextlib.contextmanager
def only_arena(run_dir: Path) -> Iterator[None]:
    """Hold the arena of a run; the lock goes with the process, however that ends.

    Args:
        run_dir: The run's folder.

    Raises:
        UserError: Another process holds it, or it cannot be locked.
    """
    file = run_dir / FOLDER / LOCK
    try:
        file.parent.mkdir(exist_ok=True)
        lock = file.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: {(error.strerror or str(error)).lower()}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir}: its arena is open already, in another process; use that one") from None
        except OSError as error:
            raise UserError(f"{file}: cannot be locked: {(error.strerror or str(error)).lower()}") from None
        yield
