"""Disturbs stages at random moments, starts them again, and compares what they end in with what was left alone."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf.config.load import load_project
from rlhf.pipeline.folder import own_folder
from rlhf.pipeline.partial import settle
from rlhf.workflow import parents_of
from tests.support.endurance.attempts import Disturbance, Ended, Server, said
from tests.support.endurance.child import Job
from tests.support.endurance.fingerprints import differences, fingerprints
from tests.support.endurance.settings import TRAINED, make_base, overrides, write_settings


@dataclass
class Row:
    """What became of a stage that was disturbed again and again."""

    mode: str
    stage: str
    processes: int = 1
    times: int = 0
    """How often it was disturbed before its end."""
    in_a_save: int = 0
    """How often while a checkpoint or the result was written."""
    resumed: int = 0
    """Attempts that had a checkpoint, or samples, to go on from."""
    runs: int = 0
    identical: int = 0
    seconds: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)
    """Exit code -> how often a disturbed attempt left it."""
    counts: dict[str, int] = field(default_factory=dict)
    """What else is counted, by the heading of its column."""
    slowest: float = 0.0
    """Most seconds from a signal to the end."""
    problems: list[str] = field(default_factory=list)

    def count(self, code: int) -> None:
        """Count an exit code."""
        self.codes[str(code)] = self.codes.get(str(code), 0) + 1


@dataclass(frozen=True)
class Whole:
    """A stage that was left alone."""

    seconds: float
    events: list[tuple[str, str]]
    """What it did to files."""
    left: dict[str, str]
    """Fingerprints of its folder."""


class Campaign:
    """One project, whose stages are disturbed."""

    def __init__(self, folder: Path, server: Server, seed: int, say: Callable[[str], None]) -> None:
        self.folder, self.server, self.seed, self.say = folder, server, seed, say
        server.call(make_base, folder / "base")
        self.config = write_settings(folder, folder / "base")
        self.runs = folder / "runs"
        self.wholes: dict[tuple[str, int], Whole] = {}

    def job(self, run: str, stage: str, processes: int = 1) -> Job:
        """A stage of a run."""
        log = self.folder / f"{run}-{stage}"
        return Job(self.config, stage, run, self.runs / run, log, overrides(stage, processes))

    def begin(self, run: str, stage: str, processes: int = 1) -> Job:
        """A stage of a new run in which its parents are done."""
        project = load_project(self.config, [f"name={run}"])
        own_folder(project)
        for parent in parents_of(project, stage):
            self.whole(parent)
            shutil.copytree(self.runs / "whole-1" / parent, project.run_dir / parent)
        return self.job(run, stage, processes)

    def whole(self, stage: str, processes: int = 1) -> Whole:
        """The stage left alone, which is run once.

        Raises:
            RuntimeError: It fails.
        """
        if (stage, processes) not in self.wholes:
            run = f"whole-{processes}"
            if processes > 1:
                run = f"{run}-{stage}"
                self.begin(run, stage)
            else:
                for parent in parents_of(load_project(self.config, [f"name={run}"]), stage):
                    self.whole(parent)
            job = replace(self.job(run, stage, processes), events=self.folder / f"{run}-{stage}.events")
            ended = self.server.attempt(job, processes)
            if any(ended.codes) or job.events is None:
                raise RuntimeError(f"{stage} on {processes}: {ended.codes}: {said(job, processes)[-5:]}")
            seen = json.loads(job.events.read_text(encoding="utf-8"))
            self.say(f"{stage} on {processes}: {ended.seconds:.1f} s whole, {len(seen)} file events")
            self.wholes[stage, processes] = Whole(ended.seconds, seen, fingerprints(job.folder / stage))
        return self.wholes[stage, processes]

    def disturb(self, mode: str, number: int, stage: str, processes: int, times: int) -> Row:
        """Send a stage a signal so many times, in as many runs as that takes.

        Args:
            mode: Name of the table.
            number: The signal.
            stage: The stage.
            processes: How many it runs on.
            times: How often it is disturbed.
        """
        draw = random.Random(f"{self.seed} {mode} {stage} {processes}")
        whole = self.whole(stage, processes)
        row, started = Row(mode, stage, processes), time.perf_counter()
        while row.times < times:
            job = self.begin(f"{mode}-{stage}-{processes}-{row.runs}", stage, processes)
            self.compare(row, job, self._to_its_end(job, row, number, times, draw, whole))
        row.seconds = round(time.perf_counter() - started, 1)
        return row

    def compare(self, row: Row, job: Job, problems: list[str]) -> None:
        """Count a run that has ended, and hold what it left against what it would have left alone."""
        row.runs += 1
        problems = problems or differences(
            self.whole(row.stage, row.processes).left, fingerprints(job.folder / row.stage)
        )
        problems += [path.name for path in job.folder.iterdir() if path.name.startswith(f".{row.stage}.")]
        if problems:
            row.problems.append(f"{job.run}: {', '.join(problems)}")
            self.say(f"  DIFFERENT {row.problems[-1]}")
        else:
            row.identical += 1

    def _to_its_end(self, job: Job, row: Row, number: int, times: int, draw: random.Random, whole: Whole) -> list[str]:
        """Start a stage until it ends by itself; returns what went wrong."""
        while True:
            found = found_work(job)
            row.resumed += found is not None
            disturbance = drawn(draw, number, whole, row.processes) if row.times < times else None
            ended = self.server.attempt(job, row.processes, disturbance)
            if disturbance is None or not ended.by(number):
                return wrong(ended, job, row.processes)
            row.times += 1
            row.in_a_save += in_a_save(ended.event)
            row.count(next(code for code in ended.codes if code))
            row.slowest = round(max(row.slowest, ended.after if disturbance.seconds is not None else 0.0), 1)
            where = f"{disturbance.seconds:.2f} s" if disturbance.seconds is not None else ended.event
            self.say(f"  {job.run}: {row.times} from {found or 'the start'} at {where.replace(str(job.folder), '')}")
            if loud := noisy(job, row.processes, number):
                return loud
            if (job.folder / job.stage / "stage.json").is_file():  # what `rlhf run` does then
                settle(load_project(job.config, [f"name={job.run}", *job.overrides]), job.stage)
                return []


def drawn(draw: random.Random, number: int, whole: Whole, processes: int) -> Disturbance:
    """A random moment, half of them at an event of a file; several processes get SIGTERM together."""
    if number != signal.SIGKILL and processes > 1:
        return Disturbance(number, seconds=draw.uniform(0, whole.seconds), victims=tuple(range(processes)))
    victims, gap = tuple(draw.sample(range(processes), draw.randint(1, processes))), draw.uniform(0, 0.5)
    if draw.random() < 0.5:
        return Disturbance(number, seconds=draw.uniform(0, whole.seconds), victims=victims, gap=gap)
    return Disturbance(number, event=draw.randrange(len(whole.events)), torn=draw.random() < 0.7, gap=gap)


def found_work(job: Job) -> str | None:
    """What an attempt has to go on from."""
    partial = job.folder / f".{job.stage}.partial"
    if job.stage in TRAINED:
        steps = [int(path.name.rpartition("-")[2]) for path in (partial / "checkpoints").glob("checkpoint-*")]
        return str(max(steps)) if steps else None
    kept = [path for path in partial.rglob("*.jsonl") if "data" not in path.parts and path.stat().st_size]
    return kept[0].name if kept else None


def in_a_save(event: str) -> bool:
    """Whether a file event is of a checkpoint or of what the stage leaves, and not of data, lock or log."""
    _, inside, path = event.partition(".partial/")
    return bool(inside) and not path.startswith(("data/", "identity.json", "metrics.jsonl", "rollouts.jsonl"))


def wrong(ended: Ended, job: Job, processes: int = 1) -> list[str]:
    """What is wrong with an attempt that should have come to its end."""
    if any(ended.codes) or ended.hung:
        return [f"{'hung, ' * ended.hung}exit codes {ended.codes}: {' / '.join(said(job, processes)[-3:])}"]
    return []


def noisy(job: Job, processes: int, number: int) -> list[str]:
    """Lines that an attempt, which was asked to end, should not have printed."""
    if number == signal.SIGKILL:
        return []
    return [line for line in said(job, processes) if line.startswith(("Traceback", "error:"))]
