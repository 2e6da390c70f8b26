"""The processes of a distributed stage: one that ends or hangs ends the others, and the user reads its reason.

A process that fails breaks the connections of the others, which then fail as well, with messages that explain nothing.
So each process of a machine writes to a shared folder where it is and why it failed, and a thread of each reads the
status of the others. Those of other nodes come through the run's folder (`node_status`), as soon as it is known.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rlhf import processes
from rlhf.failure import ended_by
from rlhf.interrupts import leave
from rlhf.pipeline import node_status
from rlhf.pipeline.node_status import NodeStatus, exchange_folder, has_ended
from rlhf.pipeline.status import StatusFile, StatusReader

_LOOK, _WAIT, _LATE = 0.3, 1.0, 3.0
"""Seconds: between two looks; until whoever failed first has written that down; by which one is late that fails too."""
_OLD = 86400.0
"""Seconds after which a folder that nobody has changed is that of processes that have ended."""
_COLLECTIVES = "torch.distributed.distributed_c10d"
_TIMED_OUT = re.compile(r"timed?.?out", re.IGNORECASE)

patience = 1800.0
"""Seconds that processes wait for each other in a collective."""
code_file: Path | None = None
"""The file that takes the exit code of the stage."""
own: Peers | None = None
"""Those of this process."""

_OTHERS = "others.json"
"""File of the folder with the statuses of other nodes' processes."""
_CONNECTS = "init_process_group"
_FAULTS = {
    "Aborted": signal.SIGABRT,
    "Segmentation fault": signal.SIGSEGV,
    "Bus error": signal.SIGBUS,
    "Illegal instruction": signal.SIGILL,
    "Floating-point exception": signal.SIGFPE,
}
"""What `faulthandler` calls signals by which a library ends a process."""


class Peers:
    """The processes of a launch, of which one is this."""

    def __init__(self) -> None:
        self.rank, self.world = processes.rank(), processes.count()
        self.folder = _folder()
        self.frame, self.main = (0, 0), threading.main_thread().ident
        self.file = StatusFile(
            self.folder / f"{self.rank}.json", pid=os.getpid(), since=time.time(), at="its start", step=None,
            collective=None,
        )  # fmt: skip
        self.nodes: NodeStatus | None = None
        self.others: StatusFile | None = None
        faulthandler.enable((self.folder / f"{self.rank}.fault").open("w"))
        threading.Thread(target=self._watch, daemon=True).start()

    def join_nodes(self, run_dir: Path) -> None:
        """Exchange statuses with the processes of other nodes from now on.

        Args:
            run_dir: The run's folder.

        Raises:
            UserError: Not all nodes see it.
        """
        folder = exchange_folder(run_dir)
        if processes.is_first_on_node():
            self.others = StatusFile(self.folder / _OTHERS, processes={})
            self.nodes = NodeStatus(folder)

    def done(self, code: int = 0) -> None:
        """Write that this process ends as it should, or because the user wants it.

        Args:
            code: Its exit code.
        """
        self.file.write(done=True, code=code)
        if self.nodes is not None:
            self.nodes.leave(self._local)
        if processes.nodes() == 1 or self.nodes is not None:  # else another process is the last of this node
            codes = [status.get("code") for status in self._local().values()]
            if codes == [0] * processes.on_node():
                shutil.rmtree(self.folder, ignore_errors=True)

    def fail(self, code: int, line: str, error: BaseException | None = None) -> NoReturn:
        """End this process and have the user read of the first that failed, once.

        Args:
            code: Its exit code.
            line: The message.
            error: Where that comes from: of a wait that was too long, the message names whom it was for.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        cause = error.__cause__ if error is not None else None
        if cause is not None and _TIMED_OUT.search(str(cause)):
            frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
            if (collective := _collective(frames)) is not None:
                line = f"error: {self._waited(collective)}"
        later = _LATE if processes.raised_elsewhere(error) else 0.0  # than on the process that it was raised on
        self.file.write(failed={"code": code, "line": line, "time": time.time() + later})
        time.sleep(_WAIT)
        self.end()

    def troubled(self) -> bool:
        """Whether another process has failed or is gone."""
        return any("failed" in status or _gone(status) for rank, status in self._all().items() if rank != self.rank)

    def end(self) -> NoReturn:
        """Print why the stage ends, unless another process does, and end this process."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher ends those that are left
        time.sleep(_LOOK * min(self.rank, 8))  # the main process first
        statuses = self._all_responded()
        gone = [rank for rank, status in statuses.items() if _gone(status, node_status.RESPONDS)]
        failed = {rank: status["failed"] for rank, status in statuses.items() if "failed" in status}
        code, line = 2, ""
        if gone:
            line = f"error: {self._gone_line(gone[0], statuses[gone[0]])}"
        elif failed:
            first = min(failed, key=lambda rank: failed[rank]["time"])
            code, line = failed[first]["code"], failed[first]["line"]
            if first and (0 not in failed or failed[0]["line"] != line):
                line = re.sub(r"^error: ", f"error: {_name(first, statuses[first], self.world)}: ", line)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.folder / "printed", os.O_CREAT | os.O_EXCL))
            print(line, file=sys.stderr, flush=True)
            if code_file is not None:
                code_file.write_text(str(code), encoding="utf-8")
        sys.stdout.flush()
        self.file.write(ended=True)
        if self.nodes is not None:
            self.nodes.leave(self._local)
        leave(code)

    def _all_responded(self) -> dict[int, dict[str, Any]]:
        """The statuses, once the file of every other node has changed again, or the node is taken to be gone."""
        begin, statuses = time.monotonic(), self._all()
        while time.monotonic() < begin + node_status.RESPONDS + _LATE:
            at_work = [status for status in statuses.values() if "node" in status and not has_ended(status)]
            if all(status["last_change"] > begin or _gone(status, node_status.RESPONDS) for status in at_work):
                break
            time.sleep(_LOOK)
            self._exchange()
            statuses = self._all()
        return statuses

    def _gone_line(self, rank: int, status: dict[str, Any]) -> str:
        """What has become of a process that ended without writing why."""
        if "node" not in status or "gone" in status:
            number = _FAULTS.get(status.get("gone", ""), signal.SIGKILL)
            return f"{_name(rank, status, self.world)} {ended_by(number, _at_step(status))}"
        return (
            f"{_node(status)}, with process {rank} of {self.world}, is not heard of any more{_at_step(status)}: it was "
            "ended, or lost the network or the run's folder"
        )

    def _watch(self) -> None:
        since = None
        while True:
            time.sleep(_LOOK)
            self._look_at_itself()
            self._exchange()
            waits = self.file.status
            if waits["collective"] == _CONNECTS and (code := self._interrupted()):
                time.sleep(_LATE)  # a peer was asked to stop and ended, and would be waited for
                leave(code)
            if waits["collective"] and time.time() - waits["since"] > patience + _LATE:  # as nccl has it
                self.fail(2, f"error: {self._waited(waits['collective'])}")
            if not self.troubled():
                continue
            since = since or time.monotonic()
            if time.monotonic() - since > _LATE:
                self.end()

    def _exchange(self) -> None:
        """Send this node's statuses to other nodes, and write theirs down for this node's processes."""
        if self.nodes is None or self.others is None:
            return
        if (theirs := self.nodes.exchange(self._local())) is not None:
            self.others.write(processes=theirs)

    def _interrupted(self) -> int:
        """The exit code of another process that ended because the user wants it; 0 where none did."""
        return max((status.get("code", 0) for rank, status in self._all().items() if rank != self.rank), default=0)

    def _look_at_itself(self) -> None:
        """Write where the main thread is, and since when."""
        frame: FrameType | None = sys._current_frames().get(self.main or 0)
        frames = [each for each, _ in traceback.walk_stack(frame)][::-1]
        collective = _collective(frames)
        inner = _named(frames, collective)
        if inner is None or (id(inner), inner.f_lineno) == self.frame or has_ended(self.file.status):
            return
        self.frame = (id(inner), inner.f_lineno)
        at = collective or f"{inner.f_code.co_filename}:{inner.f_lineno} ({inner.f_code.co_name})"
        self.file.write(collective=collective, at=at, since=time.time(), step=_step(frames))

    def _waited(self, collective: str) -> str:
        """Who waited for whom, in what, how long."""
        waits = self.file.status
        others = {rank: status for rank, status in self._all().items() if rank != self.rank}
        late = {rank: status for rank, status in others.items() if status["collective"] != collective}
        seconds = min(patience, time.time() - waits["since"]) if waits["collective"] == collective else patience
        whom = "; ".join(f"{_name(rank, status)}, which is at {status['at']}" for rank, status in late.items())
        return (
            f"process {self.rank} of {self.world} waited {seconds:.0f} s in {collective}{_at_step(waits)} for "
            f"{whom or 'processes of another machine'}"
        )

    def _all(self) -> dict[int, dict[str, Any]]:
        """The status of each process by rank, this one and those of other nodes included."""
        theirs = StatusReader(self.folder / _OTHERS).read().get("processes", {})
        return dict(sorted([*self._local().items(), *((int(rank), status) for rank, status in theirs.items())]))

    def _local(self) -> dict[int, dict[str, Any]]:
        """The status of each process of this machine; of one that is gone, how it ended, as far as it is known."""
        statuses = {}
        for path in self.folder.glob("[0-9]*.json"):
            if status := StatusReader(path).read():
                statuses[int(path.stem)] = {**status, **({"gone": _fault(path)} if _gone(status) else {})}
        return statuses


def joined() -> Peers | None:
    """The peers of a process of a distributed launch; None where it is alone."""
    global own
    own = Peers() if processes.count() > 1 else None
    return own


def _folder() -> Path:
    """A folder that the processes of one launcher share, and nobody else."""
    parent, began = os.getppid(), ""
    with contextlib.suppress(OSError):
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    folder = Path(tempfile.gettempdir()) / f"rlhf-{os.getuid()}-{parent}-{began}-{os.environ.get('MASTER_PORT', '')}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for left in folder.parent.glob(f"rlhf-{os.getuid()}-*-*-*"):
        with contextlib.suppress(OSError):  # another process cleans up, too
            if time.time() - left.stat().st_mtime > _OLD:
                shutil.rmtree(left, ignore_errors=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder}: belongs to somebody else")
    return folder


def _gone(status: dict[str, Any], stale: float = node_status.STALE) -> bool:
    """Whether a process ended without writing why.

    Args:
        status: Its status.
        stale: Seconds without a change after which a process of another node is taken to have ended.
    """
    if "gone" in status or has_ended(status):
        return "gone" in status
    if "node" in status:
        return bool(time.monotonic() - status["last_change"] > stale)
    return _ended(status["pid"])


def _fault(path: Path) -> str:
    """What `faulthandler` wrote of the process with this status file; empty if a signal ended it at once."""
    with contextlib.suppress(OSError):
        line, _, _ = path.with_suffix(".fault").read_text(encoding="utf-8").partition("\n")
        return line.removeprefix("Fatal Python error: ")
    return ""


def _name(rank: int, status: dict[str, Any], world: int | None = None) -> str:
    """What a process is called; with the number of all where that is given."""
    of = "" if world is None else f" of {world}"
    return f"process {rank}{of}" + (f" on {_node(status)}" if "node" in status else "")


def _node(status: dict[str, Any]) -> str:
    """What the node of a process is called."""
    return f"node {status['node']} ({status['host']})"


def _ended(pid: int) -> bool:
    """Whether a process of this machine has ended, its parent aware of it or not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _collective(frames: list[FrameType]) -> str | None:
    """The collective that a call stack, outermost first, is in; None where it computes."""
    for frame in frames:
        module, name = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        if module == _COLLECTIVES and not name.startswith("_"):
            return name
        if module.startswith("torch.autograd") and name == "backward":
            return "all_reduce of gradients"
    return None


def _named(frames: list[FrameType], collective: str | None) -> FrameType | None:
    """The frame that stands for a call stack: of a collective its own, else the innermost of no library."""
    if collective is not None:
        return next(frame for number, frame in enumerate(frames) if _collective(frames[: number + 1]))
    library = os.path.dirname(os.__file__)
    for frame in reversed(frames):
        file = frame.f_code.co_filename
        if "-packages" not in file and os.sep in file and not file.startswith(library):
            return frame
    return None


def _step(frames: list[FrameType]) -> int | None:
    """The optimizer step that a training is at."""
    for frame in frames:
        state = getattr(frame.f_locals.get("self"), "state", None) if "training_loop" in frame.f_code.co_name else None
        if state is not None:
            return int(state.global_step) + 1
    return None


def _at_step(status: dict[str, Any]) -> str:
    return "" if status["step"] is None else f" at step {status['step']}"
