"""The processes of a distributed stage: one that ends or hangs ends the others, and what it says is what is said.

A process that fails breaks the connections of the others, which then fail as well, with words that explain nothing. So
each process of a machine notes in a shared folder where it is and why it failed, and a thread of each looks at the
notes of the others. Those of other nodes come through the run's folder (`node_notes`), as soon as it is known.
"""

from __future__ import annotations

import contextlib
import json
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
from rlhf.interrupts import leave
from rlhf.pipeline.node_notes import SILENT, NodeNotes, meet

_LOOK, _WAIT, _LATE = 0.3, 1.0, 3.0
"""Seconds: between two looks; until whoever failed first has written that down; by which one is late that fails too."""
_FORGOTTEN = 86400.0
"""Seconds after which notes that nobody has changed are those of processes that have ended."""
_COLLECTIVES = "torch.distributed.distributed_c10d"
_TIMED_OUT = re.compile(r"timed?.?out", re.IGNORECASE)

patience = 1800.0
"""Seconds that processes wait for each other in a collective."""
told: Path | None = None
"""The file that takes the exit code of the stage."""
present: Peers | None = None
"""Those of this process."""


_HEARD = 8.0
"""Seconds in which a node that is there is heard of again."""
_OTHERS = "others"
"""File of the folder with the notes of other nodes' processes."""
_CONNECTS = "init_process_group"


class Peers:
    """The processes of a launch, of which one is this."""

    def __init__(self) -> None:
        self.rank, self.world = processes.rank(), processes.count()
        self.folder = _folder()
        self.note: dict[str, Any] = {"pid": os.getpid(), "since": time.time(), "at": "its start", "step": None}
        self.lock, self.frame = threading.Lock(), (0, 0)
        self.main = threading.main_thread().ident
        self.others: NodeNotes | None = None
        self._write()
        threading.Thread(target=self._watch, daemon=True).start()

    def meet(self, run_dir: Path) -> None:
        """Exchange notes with the processes of other nodes from now on.

        Args:
            run_dir: The run's folder.

        Raises:
            UserError: Not all nodes see it.
        """
        folder = meet(run_dir)
        if processes.is_first_on_node():
            self.others = NodeNotes(folder)

    def done(self, code: int = 0) -> None:
        """Note that this process ends as it should, or because the user wants it.

        Args:
            code: Its exit code.
        """
        self._write(done=True, code=code)
        if self.others is not None:
            self.others.leave(self._local)
        if (
            processes.nodes() == 1 or self.others is not None
        ):  # of several nodes, the process that exchanges notes is the last
            codes = [note.get("code") for note in self._local().values()]
            if codes == [0] * processes.on_node():
                shutil.rmtree(self.folder, ignore_errors=True)

    def fail(self, code: int, line: str, error: BaseException | None = None) -> NoReturn:
        """End this process and have the first that failed be the one of which the user reads, once.

        Args:
            code: Its exit code.
            line: What it says.
            error: Where that comes from: of a wait that was too long, the line says for whom it was.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        cause = error.__cause__ if error is not None else None
        if cause is not None and _TIMED_OUT.search(str(cause)):
            frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
            if (collective := _collective(frames)) is not None:
                line = f"error: {self._waited(collective)}"
        later = _LATE if processes.raised_elsewhere(error) else 0.0  # than on the process that it was raised on
        self._write(failed={"code": code, "line": line, "time": time.time() + later})
        time.sleep(_WAIT)
        self.end()

    def troubled(self) -> bool:
        """Whether another process has failed or is gone."""
        return any("failed" in note or _gone(note) for rank, note in self._notes().items() if rank != self.rank)

    def end(self) -> NoReturn:
        """Say why the stage ends, unless another process says it, and end this process."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher ends those that are left
        time.sleep(_LOOK * min(self.rank, 8))  # the main process first
        notes = self._heard_again()
        gone = [rank for rank, note in notes.items() if _gone(note, _HEARD)]
        failed = {rank: note["failed"] for rank, note in notes.items() if "failed" in note}
        code, line = 2, ""
        if gone:
            line = f"error: {self._ended(gone[0], notes[gone[0]])}"
        elif failed:
            first = min(failed, key=lambda rank: failed[rank]["time"])
            code, line = failed[first]["code"], failed[first]["line"]
            if first and (0 not in failed or failed[0]["line"] != line):
                line = re.sub(r"^error: ", f"error: {_name(first, notes[first], self.world)}: ", line)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.folder / "told", os.O_CREAT | os.O_EXCL))
            print(line, file=sys.stderr, flush=True)
            if told is not None:
                told.write_text(str(code), encoding="utf-8")
        sys.stdout.flush()
        leave(code)

    def _heard_again(self) -> dict[int, dict[str, Any]]:
        """The notes, once every other node was heard of again, or is taken to be gone."""
        begin, notes = time.monotonic(), self._notes()
        while time.monotonic() < begin + _HEARD + _LATE:
            at_work = [note for note in notes.values() if "node" in note and not {"done", "failed"} & note.keys()]
            if all(note["heard"] > begin or _gone(note, _HEARD) for note in at_work):
                break
            time.sleep(_LOOK)
            self._exchange()
            notes = self._notes()
        return notes

    def _ended(self, rank: int, note: dict[str, Any]) -> str:
        """What has become of a process that ended without a word."""
        if "node" not in note or note.get("gone"):
            return f"{_name(rank, note, self.world)} was killed{_at_step(note)}; was there memory enough?"
        return (
            f"{_node(note)}, with process {rank} of {self.world}, is not heard of any more{_at_step(note)}: it was "
            "ended, or lost the network or the run's folder"
        )

    def _watch(self) -> None:
        since = None
        while True:
            time.sleep(_LOOK)
            self._look_at_itself()
            self._exchange()
            if self.note.get("collective") == _CONNECTS and (code := self._interrupted()):
                time.sleep(_LATE)  # a peer was asked to stop and ended, and would be waited for
                leave(code)
            if "collective" in self.note and time.time() - self.note["since"] > patience + _LATE:  # as nccl has it
                self.fail(2, f"error: {self._waited(self.note['collective'])}")
            if not self.troubled():
                continue
            since = since or time.monotonic()
            if time.monotonic() - since > _LATE:
                self.end()

    def _exchange(self) -> None:
        """Have this node's notes known to other nodes, and theirs to this node's processes."""
        if self.others is not None and (theirs := self.others.exchange(self._local())) is not None:
            with contextlib.suppress(OSError):  # the folder is deleted once all have ended
                _put(self.folder / f"{_OTHERS}.json", theirs)

    def _interrupted(self) -> int:
        """The exit code of another process that ended because the user wants it; 0 where none did."""
        return max((note.get("code", 0) for rank, note in self._notes().items() if rank != self.rank), default=0)

    def _look_at_itself(self) -> None:
        """Note where the main thread is, and since when."""
        frame: FrameType | None = sys._current_frames().get(self.main or 0)
        frames = [each for each, _ in traceback.walk_stack(frame)][::-1]
        collective = _collective(frames)
        inner = _named(frames, collective)
        if inner is None or (id(inner), inner.f_lineno) == self.frame:
            return
        self.frame = (id(inner), inner.f_lineno)
        at = collective or f"{inner.f_code.co_filename}:{inner.f_lineno} ({inner.f_code.co_name})"
        waits = {"collective": collective} if collective else {}
        self._write(replace={**waits, "at": at, "since": time.time(), "step": _step(frames)})

    def _waited(self, collective: str) -> str:
        """Who waited for whom, in what, how long."""
        notes, own = self._notes(), self.note
        others = {rank: note for rank, note in notes.items() if rank != self.rank}
        late = {rank: note for rank, note in others.items() if note.get("collective") != collective}
        seconds = min(patience, time.time() - own["since"]) if own.get("collective") == collective else patience
        whom = "; ".join(f"{_name(rank, note)}, which is at {note['at']}" for rank, note in late.items())
        return (
            f"process {self.rank} of {self.world} waited {seconds:.0f} s in {collective}{_at_step(own)} for "
            f"{whom or 'processes of another machine'}"
        )

    def _write(self, replace: dict[str, Any] | None = None, **more: Any) -> None:
        with self.lock, contextlib.suppress(OSError):
            if replace is not None:
                if {"done", "failed"} & self.note.keys():
                    return
                self.note = {"pid": self.note["pid"], **replace}
            self.note = {**self.note, **more}
            _put(self.folder / f"{self.rank}.json", self.note)

    def _notes(self) -> dict[int, dict[str, Any]]:
        """What each process noted, this one and those of other nodes included, by rank."""
        notes = self._local()
        with contextlib.suppress(OSError, ValueError):
            theirs = json.loads((self.folder / f"{_OTHERS}.json").read_text(encoding="utf-8"))
            notes |= {int(rank): note for rank, note in theirs.items()}
        return dict(sorted(notes.items()))

    def _local(self) -> dict[int, dict[str, Any]]:
        """What each process of this machine noted; of one that ended without a word, that too."""
        notes = {}
        for path in self.folder.glob("[0-9]*.json"):
            with contextlib.suppress(OSError, ValueError):
                note = json.loads(path.read_text(encoding="utf-8"))
                notes[int(path.stem)] = {**note, **({"gone": True} if _gone(note) else {})}
        return notes


def joined() -> Peers | None:
    """The peers of a process of a distributed launch; None where it is alone."""
    global present
    present = Peers() if processes.count() > 1 else None
    return present


def _folder() -> Path:
    """A folder that the processes of one launcher share, and nobody else."""
    parent, began = os.getppid(), ""
    with contextlib.suppress(OSError):
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    folder = Path(tempfile.gettempdir()) / f"rlhf-{os.getuid()}-{parent}-{began}-{os.environ.get('MASTER_PORT', '')}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for left in folder.parent.glob(f"rlhf-{os.getuid()}-*-*-*"):
        with contextlib.suppress(OSError):  # another process cleans up, too
            if time.time() - left.stat().st_mtime > _FORGOTTEN:
                shutil.rmtree(left, ignore_errors=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder}: belongs to somebody else")
    return folder


def _put(path: Path, value: Any) -> None:
    """Write a note whole."""
    partial = path.with_name(f".{path.stem}")
    partial.write_text(json.dumps(value), encoding="utf-8")
    os.replace(partial, path)


def _gone(note: dict[str, Any], silent: float = SILENT) -> bool:
    """Whether a process ended without a word.

    Args:
        note: Its note.
        silent: Seconds without a word after which a process of another node is taken to have ended.
    """
    if "failed" in note or note.get("done"):
        return False
    if "node" in note:
        return bool(note.get("gone")) or time.monotonic() - note["heard"] > silent
    return _ended(note["pid"])


def _name(rank: int, note: dict[str, Any], world: int | None = None) -> str:
    """What a process is called; with the number of all where that is given."""
    of = "" if world is None else f" of {world}"
    return f"process {rank}{of}" + (f" on {_node(note)}" if "node" in note else "")


def _node(note: dict[str, Any]) -> str:
    """What the node of a process is called."""
    return f"node {note['node']} ({note['host']})"


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


def _at_step(note: dict[str, Any]) -> str:
    return "" if note.get("step") is None else f" at step {note['step']}"
