"""The real commands, `rlhf run` alone and with `accelerate launch`, asked to stop by a signal at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.endurance.campaign import Campaign, Row
from tests.support.endurance.fingerprints import differences, fingerprints
from tests.support.endurance.settings import STAGES

ROOT = Path(__file__).parents[3]
_PATIENCE = 90.0
"""Seconds that a command has to end after a signal."""


@dataclass(frozen=True)
class Command:
    """A command that is interrupted."""

    name: str
    options: tuple[str, ...] = ()
    stages: tuple[str, ...] = STAGES
    processes: int = 1
    times: int = 20


_TWO = ("--accelerate", str(ROOT / "recipes/accelerate/cpu.yaml"))
COMMANDS = (
    Command("rlhf run"),
    Command("rlhf run --accelerate", (*_TWO, "--only", "sft,reward"), ("sft", "reward"), 2, 10),
)


def interrupt(campaign: Campaign, command: Command, times: int | None) -> Row:
    """Send a command SIGTERM, or its group of processes SIGINT, at random moments until it comes to its end."""
    draw = random.Random(f"{campaign.seed} {command.name}")
    times = times or command.times
    row, started = Row("command", command.name, command.processes), time.perf_counter()
    whole = f"command-{command.processes}-whole"
    begun = time.perf_counter()
    if code := _start(campaign, command, whole).wait():
        row.problems.append(f"{whole}: exit code {code}")
        return row
    seconds = time.perf_counter() - begun
    campaign.say(f"{command.name}: {seconds:.1f} s whole")
    while row.times < times:
        run = f"command-{command.processes}-{row.runs}"
        problems = _to_its_end(campaign, command, run, row, times, draw, seconds)
        for stage in command.stages:
            left = [fingerprints(campaign.runs / name / stage) for name in (whole, run)]
            problems += [f"{stage}/{name}" for name in differences(*left)]
        row.runs += 1
        row.identical += not problems
        row.problems += problems
    row.seconds = round(time.perf_counter() - started, 1)
    return row


def _to_its_end(
    campaign: Campaign, command: Command, run: str, row: Row, times: int, draw: random.Random, seconds: float
) -> list[str]:
    while row.times < times:
        row.resumed += any((campaign.runs / run).glob(".*.partial/checkpoints/checkpoint-*"))
        process = _start(campaign, command, run)
        number = signal.SIGTERM if draw.random() < 0.7 else signal.SIGINT
        try:
            code = process.wait(draw.uniform(0, seconds))
            return [f"{run}: exit code {code}"] if code else []
        except subprocess.TimeoutExpired:
            sent = time.perf_counter()
        if number == signal.SIGTERM:
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)  # as a terminal does
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return [f"{run}: {signal.Signals(number).name} did not end it"]
        if code == 0:
            return []
        row.times += 1
        row.count(code)
        row.slowest = round(max(row.slowest, time.perf_counter() - sent), 1)
        lines = _log(campaign, run).read_text(encoding="utf-8", errors="replace").splitlines()
        campaign.say(f"  {run}: {row.times}, {number}, exit code {code}: {lines[-1][:120] if lines else ''}")
        loud = ("error:",) if command.processes > 1 else ("error:", "Traceback")  # torch's launcher adds one of its own
        if code not in (-number, 128 + number) or any(line.startswith(loud) for line in lines):
            return [f"{run}: exit code {code} after {signal.Signals(number).name}: {' / '.join(lines[-4:])}"]
    code = _start(campaign, command, run).wait()
    return [f"{run}: exit code {code}"] if code else []


def _start(campaign: Campaign, command: Command, run: str) -> subprocess.Popen[bytes]:
    arguments = [Path(sys.executable).with_name("rlhf"), "run", campaign.config, f"name={run}", *command.options]
    with _log(campaign, run).open("wb") as log:
        return subprocess.Popen(
            arguments, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip


def _log(campaign: Campaign, run: str) -> Path:
    return campaign.folder / f"{run}.log"
