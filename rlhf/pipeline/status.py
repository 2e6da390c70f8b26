"""Status files: JSON that one process rewrites and others read.

A reader knows when a file last changed by its own clock, so no two machines' clocks are compared. Each write counts, so
a file that is refreshed changes even if its status does not; one that no longer changes is that of a process that is
gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from rlhf.errors import UserError


class StatusFile:
    """The status that this process writes.

    Args:
        path: The file, in a folder that is there.
        every: Seconds after which a thread writes it again; None leaves that to `write`.
        **status: The first contents.
    """

    def __init__(self, path: Path, every: float | None = None, **status: Any) -> None:
        self.path, self.status = path, status
        self._lock, self._stopped, self._writes = threading.Lock(), threading.Event(), 0
        self.write()
        self._thread = threading.Thread(target=self._refresh, args=(every,), daemon=True)
        if every is not None:
            self._thread.start()

    def write(self, **changes: Any) -> None:
        """Change some keys, and write the file whole; a reader never sees half of it.

        A folder that is gone, as for a moment on a network, is no error: the next write may succeed.
        """
        with self._lock, contextlib.suppress(OSError):
            self.status = {**self.status, **changes}
            self._writes += 1
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps({**self.status, "writes": self._writes}), encoding="utf-8")
            os.replace(partial, self.path)

    def _refresh(self, every: float) -> None:
        while not self._stopped.wait(every):
            self.write()

    def stop(self) -> None:
        """Write no more by itself; the file stays as it is."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()


class StatusReader:
    """The status that another process writes.

    Args:
        path: The file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.status: dict[str, Any] = {}
        """What was read last."""
        self.first_read: dict[str, float] = {}
        """When each key was first read (seconds of the monotonic clock)."""
        self.last_change, self._changes = time.monotonic(), -1

    def read(self) -> dict[str, Any]:
        """The status now; the last one if the file cannot be read.

        Raises:
            UserError: The file belongs to another user.
        """
        with contextlib.suppress(OSError, ValueError), self.path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():  # whose commands a node would run
                raise UserError(f"{self.path}: belongs to somebody else")
            status = json.load(file)
            if status != self.status:
                self.status, self.last_change, self._changes = status, time.monotonic(), self._changes + 1
                self.first_read = {key: self.first_read.get(key, self.last_change) for key in status}
        return self.status

    @property
    def is_live(self) -> bool:
        """Whether the file has changed since it was first read, and so is not one that an earlier run left behind."""
        return self._changes > 0

    def is_stale(self, seconds: float) -> bool:
        """Whether the file has not changed for so many seconds."""
        return time.monotonic() - self.last_change > seconds
