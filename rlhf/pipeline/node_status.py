"""Exchanges the statuses of a stage's processes between nodes, through one file for each node in the run's folder.

One process of each node writes its file. Before a stage begins, `exchange_folder` checks that all nodes see the same
folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf import processes
from rlhf.errors import UserError
from rlhf.pipeline.status import StatusFile, StatusReader

FOLDER = ".nodes"
"""Folder of a run in which the nodes of a stage exchange their files; the last node that leaves deletes it."""
STALE = 120.0
"""Seconds without a change of its file after which a node is taken to be gone, if there is no other sign. It is long,
since the node's process may be inside a library that blocks its other threads."""
RESPONDS = 8.0
"""Seconds within which the file of a node that is there changes, once something is wrong."""
_EVERY = 1.0
"""Seconds between two exchanges."""
_LEAVE_WITHIN = 10.0
"""Seconds that the processes of a launch have to end, one after the other."""
_SEEN_WITHIN = 30.0
"""Seconds that a file may take to appear on another node."""

Statuses = Mapping[int, dict[str, Any]]
"""Statuses of processes, by rank."""


class NodeStatus:
    """The statuses of all nodes' processes, exchanged by one process of each node.

    Args:
        folder: Where the nodes exchange their files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock, self._last = folder, threading.Lock(), 0.0
        self._file = StatusFile(self._path(processes.node()), host=socket.gethostname(), processes={}, left=False)
        numbers = set(range(processes.nodes())) - {processes.node()}
        self._others = {number: StatusReader(self._path(number)) for number in sorted(numbers)}

    def _path(self, node: int) -> Path:
        return self.folder / f"{node}.json"

    def exchange(self, own: Statuses) -> dict[int, dict[str, Any]] | None:
        """Write the statuses of this node's processes and read those of the others, unless that was done a moment ago.

        Args:
            own: The statuses of this node's processes.

        Returns:
            The statuses of the processes of other nodes by rank, with `node`, `host` and `last_change`, the time
            (seconds, of this machine's monotonic clock) at which their node's file last changed; None where it is too
            early.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._last < _EVERY:
                return None
            self._last = now
        self._file.write(processes=own)
        return {
            int(rank): {**status, "node": number, "host": node.status["host"], "last_change": node.last_change}
            for number, node in self._others.items()
            for rank, status in node.read().get("processes", {}).items()
        }

    def leave(self, own: Callable[[], Statuses]) -> None:
        """Write this node's statuses a last time once its processes end; the node that leaves last deletes the folder.

        Args:
            own: Reads the statuses of this node's processes.
        """
        end = time.monotonic() + _LEAVE_WITHIN
        while time.monotonic() < end and not all(map(has_ended, own().values())):
            time.sleep(_EVERY / 5)
        self._file.write(processes=own(), left=True)
        while not (left := self._others_left()) and time.monotonic() < end:
            time.sleep(_EVERY / 5)
        if left:
            shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _others_left(self) -> bool:
        return all(node.read().get("left") or node.is_stale(RESPONDS) for node in self._others.values())


def has_ended(status: Mapping[str, Any]) -> bool:
    """Whether a process has ended or is about to, and has written why; or was seen to be gone."""
    return bool({"done", "failed", "ended", "gone"} & status.keys())


def exchange_folder(run_dir: Path) -> Path:
    """Check that all nodes see the same folder, and make one in it for their files; every process calls this.

    Args:
        run_dir: The run's folder, which is there on node 0.

    Raises:
        UserError: A node does not see what node 0 wrote.
    """

    def make() -> str:
        shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
        token = os.urandom(16).hex()
        for folder in (run_dir / FOLDER, run_dir / FOLDER / token):
            folder.mkdir(mode=0o700, parents=True)
        return token

    folder = run_dir / FOLDER / processes.from_main(make)
    end = time.monotonic() + _SEEN_WITHIN
    while not (seen := folder.is_dir() and folder.stat().st_uid == os.getuid()) and time.monotonic() < end:
        time.sleep(_EVERY / 5)
    own = None if seen else (processes.node(), socket.gethostname())
    blind = sorted({other for other in processes.gathered(own) if other is not None})
    if blind:
        if processes.is_main():
            shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
        names = " and ".join(f"node {number} ({host})" for number, host in blind)
        raise UserError(
            f"{run_dir}: {names} does not see what node 0 writes there; name a folder that all nodes share "
            "in output_dir:"
        )
    return folder
