"""A run on several nodes: node 0 leads, and the others start the processes of each stage when it does.

The nodes exchange files in a folder beside the run's; a run does not begin unless all nodes see it. Each node rewrites
one file every second. A node whose file no longer changes is taken to be gone, so no clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError
from rlhf.pipeline.launch_file import Launch

_BEAT, _LOOK = 1.0, 0.2
"""Seconds between two writes of a node's file, and between two reads of the others'."""
_SILENT = 60.0
"""Seconds without a change of its file after which a node is taken to be gone."""
_OWN_WORDS = 20.0
"""Seconds that processes have to end and to report why, once those of another node have ended."""
_FAREWELL = 10.0
"""Seconds that the others have to read how the run ended."""


class Voice:
    """The status file of this node, which a thread keeps rewriting.

    Args:
        folder: Where the nodes exchange their files.
        node: Number of this node.
        said: The first contents.
    """

    def __init__(self, folder: Path, node: int, **said: Any) -> None:
        self.path, self.said = folder / f"node-{node}.json", {"host": socket.gethostname(), **said}
        self.lock, self.ended, self.beats = threading.Lock(), threading.Event(), 0
        self.say()
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()

    def say(self, **more: Any) -> None:
        """Add keys to the file, and write it."""
        with self.lock, contextlib.suppress(OSError):  # a folder that is gone for a moment
            self.said |= more
            self.beats += 1
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps({**self.said, "beat": self.beats}), encoding="utf-8")
            os.replace(partial, self.path)

    def _beat(self) -> None:
        while not self.ended.wait(_BEAT):
            self.say()

    def end(self) -> None:
        """Stop writing; the file stays as it is."""
        self.ended.set()
        self.thread.join()


class Ear:
    """Reads another node's status file.

    Args:
        folder: Where the nodes exchange their files.
        node: Number of that node.
    """

    def __init__(self, folder: Path, node: int) -> None:
        self.path, self.node = folder / f"node-{node}.json", node
        self.said: dict[str, Any] = {}
        self.since: dict[str, float] = {}
        """When each key was first read, on this node's monotonic clock."""
        self.heard, self.changes = time.monotonic(), -1

    def listen(self) -> dict[str, Any]:
        """Read the file; the last contents if it cannot be read now."""
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(_read_own(self.path))
            if said != self.said:
                self.said, self.heard, self.changes = said, time.monotonic(), self.changes + 1
                self.since = {key: self.since.get(key, self.heard) for key in said}
        return self.said

    @property
    def live(self) -> bool:
        """Whether the file changes, and so is not one that an earlier run left behind."""
        return self.changes > 0

    @property
    def silent(self) -> bool:
        """Whether the file has not changed for too long."""
        return time.monotonic() - self.heard > _SILENT

    def check(self) -> None:
        """Check that the node is there.

        Raises:
            UserError: Its file has not changed for too long.
        """
        if self.silent:
            raise UserError(
                f"{self}: not heard of for {_SILENT:.0f} s: it was ended, or lost the network or {self.path.parent}"
            )

    def __str__(self) -> str:
        return f"node {self.node}" + (f" ({self.said['host']})" if "host" in self.said else "")


def _read_own(path: Path) -> str:
    """The text of a file of this user.

    Raises:
        UserError: It belongs to another user, whose commands this node would run.
    """
    with path.open(encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_uid != os.getuid():
            raise UserError(f"{path}: belongs to somebody else")
        return file.read()


def meeting_place(project: ProjectConfig) -> Path:
    """The folder in which the nodes of a run exchange their files; all rounds of a project have the same one."""
    run_dir = project.run_dir.parent if project.round > 1 else project.run_dir
    return run_dir.with_name(f".{run_dir.name}.nodes")


class Leader:
    """Node 0 of a run.

    Args:
        folder: Where the nodes exchange their files.
        launch: The number of nodes.
        project: The run.
    """

    def __init__(self, folder: Path, launch: Launch, project: ProjectConfig) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)  # a node runs what it reads there
        self.folder, self.key, self.number = folder, uuid.uuid4().hex, 0
        self.others = [Ear(folder, node) for node in range(1, launch.nodes)]
        said = {"round": project.round, "overrides": list(project.overrides)}
        self.voice = Voice(folder, 0, key=self.key, joined={}, number=0, **said)

    def gather(self, wait: float, say: Callable[[str], None]) -> None:
        """Wait for all nodes.

        Args:
            wait: How many seconds.
            say: Called with a line that names the missing nodes.

        Raises:
            UserError: Some nodes do not appear; they may see another folder.
        """
        begin, said = time.monotonic(), False
        while missing := [f"node {ear.node}" for ear in self.others if ear.listen().get("key") != self.key]:
            if time.monotonic() > begin + wait:
                raise UserError(
                    f"{self.folder}: {' and '.join(missing)} not heard of for {wait:.0f} s; start the same command "
                    "there, and see to it that all nodes share output_dir:"
                )
            if not said and time.monotonic() > begin + _BEAT:
                say(f"waiting for {' and '.join(missing)}")
                said = True
            time.sleep(_LOOK)
        self.voice.say(joined={str(ear.node): ear.said["id"] for ear in self.others})

    def start(self, stage: str, key: str) -> None:
        """Have the others start a stage.

        Args:
            stage: The stage.
            key: Of the run, for its processes.
        """
        self.number += 1
        self.voice.say(number=self.number, stage=stage, run=key)

    def check(self) -> None:
        """Check that all nodes are at the stage that was started last.

        Raises:
            UserError: One is gone, or its processes ended before their work was done and those of this node go on.
        """
        for ear in self.others:
            ear.listen()
            ear.check()
            failed = ear.said.get("failed", {})
            ended = failed.get("number") == self.number or "left" in ear.said
            if ended and time.monotonic() - ear.since["failed"] > _OWN_WORDS:
                raise UserError(f"{ear}: its processes ended with exit code {failed['code']}; it says why")

    def end(self, code: int) -> None:
        """Tell the others how the run has ended, and wait until they know.

        Args:
            code: Exit code of the run.
        """
        self.voice.say(ended=code)
        end = time.monotonic() + _FAREWELL
        while time.monotonic() < end and any(ear.path.exists() and "left" not in ear.listen() for ear in self.others):
            time.sleep(_LOOK)
        self.voice.end()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def leading(project: ProjectConfig, launch: Launch | None) -> Iterator[Leader | None]:
    """Lead the other nodes of a launch, and end when they know how the run ended.

    Args:
        project: The run.
        launch: What starts its stages; None for one process.

    Yields:
        The leader, which has gathered nobody yet; None where there is one node.
    """
    if launch is None or launch.nodes == 1:
        yield None
        return
    leader, code = Leader(meeting_place(project), launch, project), 0
    try:
        yield leader
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        raise
    finally:
        leader.end(code)


class Ended(Exception):
    """The run has ended on node 0."""


class Follower:
    """A node of a run other than node 0.

    Args:
        folder: Where the nodes exchange their files.
        launch: The number of this node.
    """

    def __init__(self, folder: Path, launch: Launch) -> None:
        self.folder, self.launch, self.id = folder, launch, uuid.uuid4().hex
        self.leader, self.voice = Ear(folder, 0), None  # type: tuple[Ear, Voice | None]
        self.number, self.code = 0, 0

    def join(self, wait: float) -> None:
        """Wait for the leader, and until it knows this node.

        Raises:
            UserError: It is not heard of; it may write to another folder.
        """
        begin, node = time.monotonic(), str(self.launch.node)
        while (said := self.leader.listen()).get("joined", {}).get(node) != self.id:
            if time.monotonic() > begin + wait:
                raise UserError(
                    f"{self.folder}: node 0 not heard of for {wait:.0f} s; start the run there, and see to it that "
                    "all nodes share output_dir:"
                )
            if self.leader.live and node in said["joined"]:
                raise UserError(f"--node {node}: this run has such a node already")
            if self.leader.live and (self.voice is None or self.voice.said["key"] != said["key"]):
                if self.voice is not None:
                    self.voice.end()
                self.voice = Voice(self.folder, self.launch.node, key=said["key"], id=self.id)
            time.sleep(_LOOK)

    def orders(self) -> Iterator[dict[str, Any]]:
        """The leader's status whenever it starts a stage, until the run has ended.

        Raises:
            UserError: The leader is gone, or was started again.
        """
        while "ended" not in (said := self._heard()):
            if said["number"] > self.number:
                self.number = said["number"]
                yield said
            elif not self.code:
                self.leader.check()
            elif self.leader.silent:  # and why, this node's processes have said
                return
            time.sleep(_LOOK)
        self.code = said["ended"]

    def check(self) -> None:
        """Check that the leader is there, and that its processes go on while those of this node do.

        Raises:
            UserError: It is gone, or was started again.
            Ended: The run has ended.
        """
        self._heard()
        self.leader.check()
        if "ended" in self.leader.said and time.monotonic() - self.leader.since["ended"] > _OWN_WORDS:
            raise Ended

    def _heard(self) -> dict[str, Any]:
        """The status of the leader that this node has joined.

        Raises:
            UserError: Another has taken its place; this node's file is left to the node that joins that one.
        """
        said = self.leader.listen()
        if self.voice is not None and said["key"] != self.voice.said["key"]:
            self.voice.end()
            self.voice = None
            raise UserError(f"{self.leader}: was started again, and with it another run; start this node again, too")
        return said

    def failed(self, code: int) -> None:
        """Tell the leader that this node's processes ended before their work was done.

        Args:
            code: Their exit code.
        """
        self.code = code
        assert self.voice is not None
        self.voice.say(failed={"number": self.number, "code": code})

    def leave(self) -> None:
        """Stop writing; once the run has ended, delete the file, for which the leader waits."""
        if self.voice is not None:
            self.voice.end()
            if "ended" in self.leader.said:
                self.voice.path.unlink(missing_ok=True)


@contextlib.contextmanager
def following(project: ProjectConfig, launch: Launch, wait: float) -> Iterator[Follower]:
    """Follow the leader of a run, and tell it if this node ends first.

    Args:
        project: The run, as this node's command names it.
        launch: The number of this node.
        wait: How many seconds to wait for the leader.
    """
    follower = Follower(meeting_place(project), launch)
    try:
        follower.join(wait)
        yield follower
    except BaseException as error:
        if follower.voice is not None:
            follower.failed(getattr(error, "exit_code", 1))
            follower.voice.say(left=True)
        raise
    finally:
        follower.leave()


def wait_for(launcher: subprocess.Popen[bytes], check: Callable[[], None] | None) -> int:
    """Wait until a launcher ends, and check the other nodes meanwhile.

    Args:
        launcher: The launcher's process.
        check: Called repeatedly; it may raise. None on a single node.

    Returns:
        Its exit code.
    """
    while True:
        if check is None:
            return launcher.wait()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return launcher.wait(_LOOK)
        check()
