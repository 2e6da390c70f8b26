"""A full disk and a read-only one: a small file system of the run's own, which is filled, enlarged and remounted."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.support.endurance.attempts import Disturbance, said
from tests.support.endurance.campaign import Campaign, Row, found_work, wrong
from tests.support.endurance.child import Job

_ALONE = "RLHF_ENDURANCE_NAMESPACE"
_PLENTY = 256 * 2**20


def in_own_namespace() -> None:
    """Start this program again where it may mount file systems that nobody else sees.

    Raises:
        SystemExit: The machine allows no such thing.
    """
    if os.environ.get(_ALONE):
        return
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        sys.exit("a full disk needs a mount of its own, and this machine lets nobody have one (unshare -rm)")
    os.environ[_ALONE] = "1"
    os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.orig_argv[1:]])


def fill(campaign: Campaign, stage: str, times: int) -> Row:
    """Run a stage on a disk that is full at a random byte, so many times, then on one with room."""
    draw = random.Random(f"{campaign.seed} disk {stage}")
    campaign.whole(stage)
    row, started = Row("disk", stage), time.perf_counter()
    with _disk(campaign, f"disk-{stage}-size", stage) as job, _most_used(job.folder) as used:
        campaign.server.attempt(job)
    while row.times < times:
        with _disk(campaign, f"disk-{stage}-{row.runs}", stage) as job:
            campaign.compare(row, job, _to_its_end(campaign, job, row, times, draw, used[0], used[-1]))
    row.seconds = round(time.perf_counter() - started, 1)
    return row


def _to_its_end(
    campaign: Campaign, job: Job, row: Row, times: int, draw: random.Random, least: int, most: int
) -> list[str]:
    problems: list[str] = []
    for _ in range(min(draw.randint(1, 4), times - row.times)):
        found = found_work(job)
        row.resumed += found is not None
        least = max(least, _used(job.folder))
        if least >= most:
            break
        size = draw.randrange(least, most) // 4096 * 4096
        _remount(job.folder, f"size={size}")
        checked = draw.random() < 0.3
        ended = campaign.server.attempt(replace(job, check_space=checked))
        if ended.codes == (0,):
            break
        row.times += 1
        row.count(ended.codes[0])
        lines = [line for line in said(job) if line.startswith("error:")]
        campaign.say(f"  {job.run}: {row.times} from {found or 'the start'} at {size} bytes: {' / '.join(lines)[:150]}")
        problems += _bad_end(job, ended.codes, lines)
        if problems:
            break
    _remount(job.folder, f"size={_PLENTY}")
    if problems or (job.folder / job.stage / "stage.json").is_file():
        return problems
    found = found_work(job)
    row.resumed += found is not None
    return wrong(campaign.server.attempt(job), job)


def read_only(campaign: Campaign, stage: str) -> Row:
    """Kill a stage halfway, start it on a disk that cannot be written to, and again on one that can."""
    row, started = Row("read-only", stage), time.perf_counter()
    half = campaign.whole(stage).seconds / 2
    with _disk(campaign, f"read-only-{stage}", stage) as job:
        campaign.server.attempt(job, 1, Disturbance(signal.SIGKILL, seconds=half))
        _remount(job.folder, "ro")
        ended = campaign.server.attempt(job)
        row.times, row.codes = 1, {str(ended.codes[0]): 1}
        lines = [line for line in said(job) if line.startswith("error:")]
        campaign.say(f"  {job.run}: {' / '.join(lines)[:150]}")
        problems = _bad_end(job, ended.codes, lines)
        _remount(job.folder, "rw")
        row.resumed = int(found_work(job) is not None)
        campaign.compare(row, job, problems or wrong(campaign.server.attempt(job), job))
    row.seconds = round(time.perf_counter() - started, 1)
    return row


def _bad_end(job: Job, codes: tuple[int, ...], lines: list[str]) -> list[str]:
    """What is wrong with an end that should be one line and exit code 2."""
    if codes == (2,) and len(lines) == 1 and not any(line.startswith("Traceback") for line in said(job)):
        return []
    return [f"exit codes {codes}: {' / '.join(said(job)[-4:])}"]


@contextmanager
def _disk(campaign: Campaign, run: str, stage: str) -> Iterator[Job]:
    """A run on a file system of its own, with the stage's parents in it."""
    folder = campaign.runs / run
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_PLENTY}", "tmpfs", str(folder)], check=True)
    try:
        yield campaign.begin(run, stage)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder)


def _remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def _used(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@contextmanager
def _most_used(folder: Path) -> Iterator[list[int]]:
    """Bytes used of a file system at the start, and at most until the block ends."""
    used, ended = [_used(folder)] * 2, threading.Event()

    def look() -> None:
        while not ended.wait(0.002):
            used[1] = max(used[1], _used(folder))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield used
    finally:
        ended.set()
        thread.join()
