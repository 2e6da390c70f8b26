"""Starts the processes of a stage and waits until they end; what ends them becomes an error that names the stage."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from rlhf import interrupts
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError
from rlhf.failure import ended_by
from rlhf.interrupts import Interrupted
from rlhf.pipeline import nodes
from rlhf.pipeline.execute import join_stage
from rlhf.pipeline.launch_file import Launch
from rlhf.pipeline.stage import guarded
from rlhf.pipeline.view import POLL_SECONDS, View, Watch

_EXPLAINED = (1, 2, 4)
"""Exit codes behind a line that says why."""
_SERVER_GONE = 255
"""Exit code of a process whose fork server is gone."""
_END_WITHIN = 40.0
"""Seconds that a launcher has to end: the one of torch gives its processes 30 of them."""


class StageFailed(Exception):
    """A stage ended with an exit code that is not 0.

    Args:
        stage: The stage.
        code: Its exit code, or that of what launched it; negative where a signal ended it.
        explained: Whether it has said why itself.
    """

    def __init__(self, stage: str, code: int, explained: bool = False) -> None:
        super().__init__(f"stage {stage} {f'ended with exit code {code}' if code > 0 else ended_by(-code)}")
        self.stage, self.code, self.explained = stage, code, explained

    @property
    def exit_code(self) -> int:
        """The code of a command that ends with it."""
        return self.code if self.code > 0 else 2


def start(
    server: Any,
    function: Callable[[ProjectConfig, str], None],
    project: ProjectConfig,
    name: str,
    key: str,
    view: View | None = None,
) -> None:
    """Run or prepare a stage in a process of its own, to its end.

    Args:
        server: Gives processes (a context of `multiprocessing`).
        function: `run_stage`, or `prepare_stage`.
        project: The project.
        name: The stage.
        key: Of the run that holds the folder.
        view: Shows how far it is; None leaves what it prints on the terminal.

    Raises:
        StageFailed: It did not end well.
        Interrupted: It was asked to stop, or this process was.
        UserError: The process that forks was killed.
    """
    watch = None if view is None else view.watch()
    process = server.Process(target=_child, args=(function, project, name, key, watch), name=name)
    look = (lambda: None) if view is None else view.look
    try:
        with interrupts.deferred():  # in the middle of it, nobody would know the process
            process.start()
        _join(process, look)
    except (EOFError, ConnectionError):  # the server was ended before it could fork, as a rule by the system
        raise StageFailed(name, -signal.SIGKILL) from None
    except Interrupted as interrupt:
        process.terminate()  # it saves what it has and ends; another signal to this process ends both at once
        _join(process, look)
        raise Interrupted(interrupt.number) from None
    except BaseException:
        process.terminate()
        process.join()
        raise
    finally:
        look()
    check_interrupted(process.exitcode)
    if process.exitcode == _SERVER_GONE:
        raise UserError(
            f"{name}: the fork server was killed, and the stage with it; was there memory enough? start the run again"
        )
    if process.exitcode:
        raise StageFailed(name, process.exitcode, explained=process.exitcode in _EXPLAINED)


def _join(process: Any, look: Callable[[], None]) -> None:
    """Wait until a process ends, and look meanwhile."""
    while process.exitcode is None:
        process.join(POLL_SECONDS)
        look()


def _child(
    function: Callable[[ProjectConfig, str], None], project: ProjectConfig, name: str, key: str, watch: Watch | None
) -> None:
    gc.freeze()  # what the fork server has imported is no garbage, and a collection need not walk through it
    if watch is not None:
        watch.take_output()
    progress = None if watch is None else watch.progress
    sys.exit(guarded(lambda: join_stage(function, project, name, key, progress), alone=False))


def check_interrupted(code: int | None) -> None:
    """End as a stage ended that was asked to, though this process was not.

    Raises:
        Interrupted: It was.
    """
    for number in interrupts.SIGNALS:
        if code == 128 + number:
            raise Interrupted(number)


def launched(
    launch: Launch, words: Sequence[str], check: Callable[[], None], watch: Watch | None = None
) -> tuple[int, str]:
    """Run a stage's processes on this node to their end.

    Args:
        launch: How they are started.
        words: Arguments of `rlhf.pipeline.stage`.
        check: Is called while they run; what it raises ends them.
        watch: Where what they print goes; None leaves it on the terminal.

    Returns:
        The launcher's exit code, and the stage's own where it failed.
    """
    # a launcher ends with 1 whatever its stage did, so the stage's own code comes through a file
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as code_file:
        command = [sys.executable, "-m", "rlhf.pipeline.launcher"]
        words = ["--tell", code_file.name, "--processes", str(launch.processes), *words]
        command += launch.command("rlhf.pipeline.stage", *words)
        with contextlib.nullcontext() if watch is None else watch.open() as output:
            # a session of its own: it hears of an interrupt from here alone, once
            launcher = subprocess.Popen(command, start_new_session=True, stdout=output, stderr=output)
        try:
            return nodes.wait_for(launcher, check), code_file.read()
        except Interrupted as interrupt:
            _end(launcher)
            raise Interrupted(interrupt.number) from None
        except BaseException:
            _end(launcher)
            raise


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """End a launcher, which ends the processes it started."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, ending)
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(_END_WITHIN)
            return
