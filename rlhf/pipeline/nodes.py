"""A run on several nodes: node 0 leads, and the others start the processes of each stage when it does.

The nodes exchange files in a folder beside the run's; a run does not begin unless all nodes see it. Each node rewrites
one file every second. A node whose file no longer changes is taken to be gone, so no clocks are compared.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError
from rlhf.pipeline.launch_file import Launch
from rlhf.pipeline.status import StatusFile, StatusReader

_EVERY, _LOOK = 1.0, 0.2
"""Seconds between two writes of a node's file, and between two reads of the others'."""
_STALE = 60.0
"""Seconds without a change of its file after which a node is taken to be gone."""
_REPORT_WITHIN = 20.0
"""Seconds that processes have to end and to report why, once those of another node have ended."""
_LEAVE_WITHIN = 10.0
"""Seconds that the others have to read how the run ended."""


class OtherNode(StatusReader):
    """The status of another node of the run.

    Args:
        folder: Where the nodes exchange their files.
        number: Number of that node.
    """

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(_file(folder, number))
        self.number = number

    @property
    def is_gone(self) -> bool:
        """Whether its file has not changed for too long."""
        return self.is_stale(_STALE)

    def check(self) -> None:
        """Check that the node is there.

        Raises:
            UserError: Its file has not changed for too long.
        """
        if self.is_gone:
            raise UserError(
                f"{self}: not heard of for {_STALE:.0f} s: it was ended, or lost the network or {self.path.parent}"
            )

    def __str__(self) -> str:
        return f"node {self.number}" + (f" ({self.status['host']})" if "host" in self.status else "")


def _file(folder: Path, number: int) -> Path:
    """The status file of a node."""
    return folder / f"node-{number}.json"


def _own_file(folder: Path, node: int, **status: Any) -> StatusFile:
    """The status file of this node, which is refreshed until it is stopped."""
    return StatusFile(_file(folder, node), _EVERY, host=socket.gethostname(), **status)


def exchange_folder(project: ProjectConfig) -> Path:
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
        self.others = [OtherNode(folder, node) for node in range(1, launch.nodes)]
        run = {"round": project.round, "overrides": list(project.overrides)}
        self.file = _own_file(folder, 0, key=self.key, joined={}, number=0, **run)

    def gather(self, wait: float, say: Callable[[str], None]) -> None:
        """Wait for all nodes.

        Args:
            wait: How many seconds.
            say: Called with a line that names the missing nodes.

        Raises:
            UserError: Some nodes do not appear; they may see another folder.
        """
        begin, told = time.monotonic(), False
        while missing := [f"node {other.number}" for other in self.others if other.read().get("key") != self.key]:
            if time.monotonic() > begin + wait:
                raise UserError(
                    f"{self.folder}: {' and '.join(missing)} not heard of for {wait:.0f} s; start the same command "
                    "there, and see to it that all nodes share output_dir:"
                )
            if not told and time.monotonic() > begin + _EVERY:
                say(f"waiting for {' and '.join(missing)}")
                told = True
            time.sleep(_LOOK)
        self.file.write(joined={str(other.number): other.status["id"] for other in self.others})

    def start(self, stage: str, key: str) -> None:
        """Have the others start a stage.

        Args:
            stage: The stage.
            key: Of the run, for its processes.
        """
        self.number += 1
        self.file.write(number=self.number, stage=stage, run=key)

    def check(self) -> None:
        """Check that all nodes are at the stage that was started last.

        Raises:
            UserError: One is gone, or its processes ended before their work was done and those of this node go on.
        """
        for other in self.others:
            other.read()
            other.check()
            failed = other.status.get("failed", {})
            ended = failed.get("number") == self.number or "left" in other.status
            if ended and time.monotonic() - other.first_read["failed"] > _REPORT_WITHIN:
                raise UserError(f"{other}: its processes ended with exit code {failed['code']}; it says why")

    def end(self, code: int) -> None:
        """Tell the others how the run has ended, and wait until they know.

        Args:
            code: Exit code of the run.
        """
        self.file.write(ended=code)
        end = time.monotonic() + _LEAVE_WITHIN
        while any(other.path.exists() and "left" not in other.read() for other in self.others):
            if time.monotonic() > end:
                break
            time.sleep(_LOOK)
        self.file.stop()
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
    leader, code = Leader(exchange_folder(project), launch, project), 0
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
        self.leader, self.file = OtherNode(folder, 0), None  # type: tuple[OtherNode, StatusFile | None]
        self.number, self.code = 0, 0

    def join(self, wait: float) -> None:
        """Wait for the leader, and until it knows this node.

        Raises:
            UserError: It is not heard of; it may write to another folder.
        """
        begin, node = time.monotonic(), str(self.launch.node)
        while (status := self.leader.read()).get("joined", {}).get(node) != self.id:
            if time.monotonic() > begin + wait:
                raise UserError(
                    f"{self.folder}: node 0 not heard of for {wait:.0f} s; start the run there, and see to it that "
                    "all nodes share output_dir:"
                )
            if self.leader.is_live and node in status["joined"]:
                raise UserError(f"--node {node}: this run has such a node already")
            if self.leader.is_live and (self.file is None or self.file.status["key"] != status["key"]):
                if self.file is not None:
                    self.file.stop()
                self.file = _own_file(self.folder, self.launch.node, key=status["key"], id=self.id)
            time.sleep(_LOOK)

    def orders(self) -> Iterator[dict[str, Any]]:
        """The leader's status whenever it starts a stage, until the run has ended.

        Raises:
            UserError: The leader is gone, or was started again.
        """
        while "ended" not in (status := self._leader_status()):
            if status["number"] > self.number:
                self.number = status["number"]
                yield status
            elif not self.code:
                self.leader.check()
            elif self.leader.is_gone:  # this node's processes have reported why
                return
            time.sleep(_LOOK)
        self.code = status["ended"]

    def check(self) -> None:
        """Check that the leader is there, and that its processes go on while those of this node do.

        Raises:
            UserError: It is gone, or was started again.
            Ended: The run has ended.
        """
        self._leader_status()
        self.leader.check()
        if "ended" in self.leader.status and time.monotonic() - self.leader.first_read["ended"] > _REPORT_WITHIN:
            raise Ended

    def _leader_status(self) -> dict[str, Any]:
        """The status of the leader that this node has joined.

        Raises:
            UserError: Another has taken its place; this node's file is left to the node that joins that one.
        """
        status = self.leader.read()
        if self.file is not None and status["key"] != self.file.status["key"]:
            self.file.stop()
            self.file = None
            raise UserError(f"{self.leader}: was started again, and with it another run; start this node again, too")
        return status

    def failed(self, code: int) -> None:
        """Tell the leader that this node's processes ended before their work was done.

        Args:
            code: Their exit code.
        """
        self.code = code
        assert self.file is not None
        self.file.write(failed={"number": self.number, "code": code})

    def leave(self) -> None:
        """Stop writing; once the run has ended, delete the file, for which the leader waits."""
        if self.file is not None:
            self.file.stop()
            if "ended" in self.leader.status:
                self.file.path.unlink(missing_ok=True)


@contextlib.contextmanager
def following(project: ProjectConfig, launch: Launch, wait: float) -> Iterator[Follower]:
    """Follow the leader of a run, and tell it if this node ends first.

    Args:
        project: The run, as this node's command names it.
        launch: The number of this node.
        wait: How many seconds to wait for the leader.
    """
    follower = Follower(exchange_folder(project), launch)
    try:
        follower.join(wait)
        yield follower
    except BaseException as error:
        if follower.file is not None:
            follower.failed(getattr(error, "exit_code", 1))
            follower.file.write(left=True)
        raise
    finally:
        follower.leave()


def wait_for(launcher: subprocess.Popen[bytes], check: Callable[[], None]) -> int:
    """Wait until a launcher ends, and check the other nodes meanwhile.

    Args:
        launcher: The launcher's process.
        check: Called repeatedly; it may raise.

    Returns:
        Its exit code.
    """
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return launcher.wait(_LOOK)
        check()
