"""Exchanges the notes of a stage's processes between nodes, through one file for each node in the run's folder.

One process of each node writes its file. A node that ends without a report leaves a file that no longer changes, so no
clocks are compared. Before a stage begins, `meet` checks that all nodes see the same folder.
"""

from __future__ import annotations

import contextlib
import json
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

FOLDER = ".nodes"
"""Folder of a run in which the nodes of a stage exchange their files; deleted when the stage ends."""
_BEAT = 1.0
"""Seconds between two exchanges."""
_FAREWELL = 5.0
"""Seconds that the processes of a launch have to end, one after the other."""
SILENT = 120.0
"""Seconds without a change of its file after which a node is taken to be gone, if there is no other sign. It is long,
since the node's process may be inside a library that blocks its other threads."""
_SEEN_WITHIN = 30.0
"""Seconds that a file may take to appear on another node."""


class NodeNotes:
    """The notes of all nodes, exchanged by one process of each.

    Args:
        folder: Where the nodes exchange their files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.beats, self.last, self.lock = folder, 0, 0.0, threading.Lock()
        self.heard: dict[int, tuple[Any, float]] = {}
        """What each other node wrote last, and when that changed."""

    def exchange(self, own: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]] | None:
        """Write the notes of this node's processes and read those of the others, unless that was done a moment ago.

        Args:
            own: The notes of this node's processes, by rank.

        Returns:
            The notes of the processes of other nodes by rank, with `node`, `host` and `heard`, the time (seconds, of
            this machine's monotonic clock) at which their node was last heard of; None where it is too early.
        """
        with self.lock:
            now = time.monotonic()
            if now - self.last < _BEAT:
                return None
            self.last, self.beats = now, self.beats + 1
        mine = self.folder / f"{processes.node()}.json"
        with contextlib.suppress(OSError):
            said = {"host": socket.gethostname(), "beat": self.beats, "notes": own}
            partial = mine.with_suffix(".partial")
            partial.write_text(json.dumps(said), encoding="utf-8")
            os.replace(partial, mine)
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                said = json.loads(path.read_text(encoding="utf-8"))
                if path != mine and said != self.heard.get(int(path.stem), (None,))[0]:
                    self.heard[int(path.stem)] = said, now
        return {
            int(rank): {**note, "node": number, "host": said["host"], "heard": since}
            for number, (said, since) in self.heard.items()
            for rank, note in said["notes"].items()
        }

    def leave(self, own: Callable[[], dict[int, dict[str, Any]]]) -> None:
        """Write this node's notes a last time once its processes end; node 0 deletes the folder after all others have.

        Args:
            own: Reads the notes of this node's processes.
        """
        end = time.monotonic() + _FAREWELL
        while time.monotonic() < end and not _have_ended(own()):
            time.sleep(_BEAT / 5)
        self.last = 0.0
        self.exchange(own())
        if processes.node() != 0:
            return
        while time.monotonic() < end and not all(_have_ended(said["notes"]) for said, _ in self.heard.values()):
            time.sleep(_BEAT / 5)
            self.exchange(own())
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def _have_ended(notes: Mapping[Any, dict[str, Any]]) -> bool:
    return all(note.get("done") or "failed" in note for note in notes.values())


def meet(run_dir: Path) -> Path:
    """Check that all nodes see the same folder, and make one in it for their files; every process calls this.

    Args:
        run_dir: The run's folder, which is there on node 0.

    Raises:
        UserError: A node does not see what node 0 wrote.
    """

    def make() -> str:
        shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
        token = os.urandom(16).hex()
        for made in (run_dir / FOLDER, run_dir / FOLDER / token):
            made.mkdir(mode=0o700, parents=True)
        return token

    folder = run_dir / FOLDER / processes.from_main(make)
    end = time.monotonic() + _SEEN_WITHIN
    while not (seen := folder.is_dir() and folder.stat().st_uid == os.getuid()) and time.monotonic() < end:
        time.sleep(_BEAT / 5)
    own = None if seen else (processes.node(), socket.gethostname())
    blind = sorted({other for other in processes.gathered(own) if other is not None})
    if blind:
        names = " and ".join(f"node {number} ({host})" for number, host in blind)
        raise UserError(
            f"{run_dir}: {names} does not see what node 0 writes there; name a folder that all nodes share "
            "in output_dir:"
        )
    return folder
