"""Attempts at a stage: on one or two processes, from a fork server, ended by a signal or left to end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass, replace
from multiprocessing import connection
from typing import Any

from tests.support.endurance import child
from tests.support.endurance.child import Job

LIMIT = 300.0
"""Seconds after which an attempt hangs."""


@dataclass(frozen=True)
class Disturbance:
    """When a stage gets a signal, and which of its processes."""

    signal: int = signal.SIGKILL
    seconds: float | None = None
    """So long after its start; or else"""
    event: int | None = None
    """at this event of the first victim's, one of those that `child.FileEvents` counts."""
    torn: bool = False
    victims: tuple[int, ...] = (0,)
    gap: float = 0.0
    """Seconds between the end of one process and the moment in which the others are ended, as a launcher does."""


@dataclass(frozen=True)
class Ended:
    """How an attempt ended."""

    codes: tuple[int, ...]
    """Exit codes of the processes, negative where a signal ended one."""
    seconds: float
    after: float = 0.0
    """Seconds from the signal to the end."""
    hung: bool = False
    event: str = ""
    """The file event at which it was disturbed, if at one: kind and path."""

    def by(self, number: int) -> bool:
        """Whether a signal ended it: the process itself says so, or was ended without a word."""
        return not self.hung and bool({-number, 128 + number} & set(self.codes))


class Server:
    """Forks the attempts' processes."""

    def __init__(self) -> None:
        os.environ.update(
            OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", MKL_CBWR="COMPATIBLE", HF_HUB_OFFLINE="1",
            TOKENIZERS_PARALLELISM="false", ACCELERATE_USE_CPU="true",
        )  # fmt: skip
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(child.preloaded())

    def call(self, function: Any, *arguments: Any) -> None:
        """Run a function in a process of its own."""
        process = self.context.Process(target=function, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")

    def attempt(self, job: Job, processes: int = 1, disturbance: Disturbance | None = None) -> Ended:
        """Run a stage until it ends or is ended.

        Args:
            job: What is run; the events are those of the main process.
            processes: How many.
            disturbance: What ends it; None lets it end.
        """
        disturbance = disturbance or Disturbance()
        first = disturbance.victims[0]
        noted = _log(job, first).with_suffix(".event")
        noted.unlink(missing_ok=True)
        port = str(_free_port())
        started, running = [], time.perf_counter()
        for rank in range(processes):
            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            mine = replace(
                job, environment={**job.environment, **(environment if processes > 1 else {})},
                signal_at=disturbance.event if rank == first else None, torn=disturbance.torn,
                signal=disturbance.signal, events=job.events if rank == 0 else None, log=_log(job, rank),
            )  # fmt: skip
            process = self.context.Process(target=child.run, args=(mine,))
            process.start()
            started.append(process)
        hung, after = _until_the_end(started, disturbance)
        event = noted.read_text(encoding="utf-8") if noted.is_file() else ""
        codes = tuple(process.exitcode or 0 for process in started)
        return Ended(codes, time.perf_counter() - running, after, hung, event)


def _until_the_end(processes: list[Any], disturbance: Disturbance) -> tuple[bool, float]:
    """Wait for the end, or bring it about; returns whether it never came by itself, and its seconds after a signal."""
    end, sent = time.monotonic() + LIMIT, time.monotonic()
    if disturbance.seconds is not None:
        connection.wait([process.sentinel for process in processes], disturbance.seconds)
        sent = time.monotonic()
        for victim in disturbance.victims:
            _send(processes[victim], disturbance.signal)
    alive, failed = processes, False
    while alive and time.monotonic() < end:
        connection.wait([process.sentinel for process in alive], 1.0)
        alive = [process for process in processes if process.is_alive()]
        if alive and not failed and any(process.exitcode for process in processes):  # what a launcher does then
            failed = True
            connection.wait([process.sentinel for process in alive], disturbance.gap)
            end = time.monotonic() + 30
            for process in alive:
                _send(process, disturbance.signal)
    after = time.monotonic() - sent
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    return bool(alive) and not failed, after


def _send(process: Any, number: int) -> None:
    if process.is_alive():
        os.kill(process.pid, number)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _log(job: Job, rank: int) -> Any:
    return job.log.with_suffix(f".{rank}.log")


def said(job: Job, processes: int = 1) -> list[str]:
    """The lines that the processes of the last attempt printed, without bars."""
    lines = []
    for rank in range(processes):
        if (path := _log(job, rank)).is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            lines += [line for line in text.splitlines() if line.strip() and "%|" not in line]
    return lines
