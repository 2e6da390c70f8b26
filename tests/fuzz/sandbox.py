"""Runs commands of `rlhf` in forks of one process that has imported everything, each in a box of its own.

`python -m tests.fuzz.sandbox` is that process: it reads a request a line and answers each with a line. A fork runs
`rlhf.cli.main` as the command does, and its stages are forks of it. What differs from the command is that they are no
forks of a fork server, and that training can be left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "COLUMNS": "120",
}
MEMORY = 6 << 30
"""Bytes of address space that a fork may take beyond what its parent has."""
FILE = 256 << 20
"""Bytes that a file may have: more is a file that would never end."""
_EVERYWHERE = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/")


@dataclass(frozen=True)
class Box:
    """A folder in which a command runs: `work` is its current folder, `tmp` and `home` are for nothing else."""

    folder: Path

    def make(self) -> Box:
        """Make its folders."""
        for name in ("work", "tmp", "home"):
            (self.folder / name).mkdir(parents=True)
        return self

    @property
    def work(self) -> Path:
        """The current folder of the command."""
        return self.folder / "work"

    @property
    def environment(self) -> dict[str, str]:
        """What the command finds in its environment besides the usual."""
        home, tmp = str(self.folder / "home"), str(self.folder / "tmp")
        return {**ENVIRONMENT, "TMPDIR": tmp, "HOME": home}

    def read(self, name: str) -> str:
        """What the command wrote to `stdout` or `stderr`, or tried to write where it may not (`outside`)."""
        file = self.folder / name
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """Exit code; negative where a signal ended it, None where it was ended after its time limit."""
    seconds: float


class Sandbox:
    """The process that runs commands, started when the first is to run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, box: Box, command: tuple[str, ...], limit: float = 60.0, trains: bool = False) -> Ended:
        """Run `rlhf COMMAND` in a box.

        Args:
            box: Where.
            command: The arguments.
            limit: Seconds after which it is ended.
            trains: Whether `run` trains; else it ends once all data and settings are checked.
        """
        request = {"box": str(box.folder), "command": command, "limit": limit, "trains": trains}
        return Ended(**self._ask(request))

    def warm(self, project: Path) -> None:
        """Check a project in that process itself, so that forks have what the libraries load when first used.

        Args:
            project: Folder with `project.yaml`.
        """
        self._ask({"warm": str(project)})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.sandbox"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, **ENVIRONMENT},
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the sandbox ended with {self._process.wait()}")
        return dict(json.loads(answer))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate("")
            self._process = None


def run_command(box: Box, command: tuple[str, ...], limit: float = 120.0) -> Ended:
    """Run `rlhf COMMAND` in a box as a user does: a new interpreter, which starts a fork server.

    Args:
        box: Where.
        command: The arguments.
        limit: Seconds after which it is ended.
    """
    start = time.perf_counter()
    with (box.folder / "stdout").open("wb") as out, (box.folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "rlhf.cli", *command], cwd=box.work, stdin=subprocess.DEVNULL, stdout=out,
            stderr=err, start_new_session=True, preexec_fn=_confine,
            env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd()), **box.environment},
        )  # fmt: skip
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
    _end_group(process.pid)
    process.wait()
    return Ended(code, time.perf_counter() - start)


def _serve() -> None:
    from rlhf.pipeline import runner
    from rlhf.pipeline.execute import quiet_environment

    quiet_environment()
    for module in [*runner._heavy_modules(), "rlhf.cli", "rlhf.serving.chat", "rlhf.publish.hub", "rlhf.arena.export"]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector of a fork would go through all of it, and copy it
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(_warmed(request["warm"]) if "warm" in request else _forked(request)) + "\n")
        answers.flush()


def _warmed(project: str) -> dict[str, Any]:
    import tempfile

    from rlhf.config.load import load_project
    from rlhf.pipeline.execute import attempt, prepare_stage

    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(project):
        read = load_project("project.yaml", [f"output_dir={scratch}"])
        for stage in read.stages:
            attempt(prepare_stage, read, stage)
    return {"threads": len(os.listdir("/proc/self/task"))}


def _forked(request: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    if not (child := os.fork()):
        _child(request)
    code, end = None, start + request["limit"]
    with contextlib.suppress(ProcessLookupError):
        os.setpgid(child, child)
    while time.perf_counter() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.002)
    _end_group(child)
    if code is None:
        os.waitpid(child, 0)
    return {"code": code, "seconds": time.perf_counter() - start}


def _child(request: dict[str, Any]) -> None:
    """Become the command; never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        box = Box(Path(request["box"]))
        _streams(box)
        os.environ.update(box.environment)
        os.chdir(box.work)
        _confine()
        _watch(box)
        code = _main(request)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _main(request: dict[str, Any]) -> int:
    import multiprocessing
    import tempfile
    import traceback

    from rlhf import cli
    from rlhf.pipeline import runner

    tempfile.tempdir = None
    runner._fork_server = lambda: multiprocessing.get_context("fork")
    if not request["trains"]:
        runner._run = lambda *arguments: None
        if request["command"][0] != "evaluate":
            cli.training.print_report = lambda folder: folder
    sys.argv = ["rlhf", *request["command"]]
    try:
        cli.main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _streams(box: Box) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(box.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")


def _confine() -> None:
    """Limits to what a command may take; and file modes hold for root, too."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        for place in (0, 1, 2):
            sets[place] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        libc.capset(header, sets)


def _watch(box: Box) -> None:
    """Note every attempt of Python code to write outside of the box."""
    notes = os.open(box.folder / "outside", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    inside = (str(box.folder) + "/", *_EVERYWHERE)
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    changing = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            wrote = set("wax+") & set(mode) if isinstance(mode, str) else isinstance(flags, int) and flags & writes
            if not wrote:
                return
        elif event not in changing:
            return
        for path in arguments[:2] if event in ("os.rename", "os.symlink", "os.link") else arguments[:1]:
            if isinstance(path, str | bytes | os.PathLike):
                full = os.path.abspath(os.fsdecode(path))
                if not full.startswith(inside):
                    os.write(notes, f"{event} {full}\n".encode(errors="backslashreplace"))

    sys.addaudithook(note)


def _end_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
