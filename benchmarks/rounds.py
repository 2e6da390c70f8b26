"""Do votes help? A simulated annotator judges the quickstart's policies in the arena; a second round learns from it.

    python benchmarks/rounds.py [--run FOLDER] [--votes 300] [--noise 0.1] [--folder FOLDER]

The annotator prefers the reply of the higher true quality (data/support/gold.py), says that equal ones are a tie, and
takes one in ten for the other; he is shown a question and two replies over HTTP, as a person is. The questions are new
ones. The control is the same round without the votes. --run names a finished run of recipes/quickstart.yaml to copy;
without it one is trained. Writes `results/rounds.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.cookiejar
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.artifacts.json_files import write_json
from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig
from rlhf.evaluation.compare import Comparison, compare
from rlhf.pipeline import rounds, runner
from rlhf.pipeline.folder import OWNER
from rlhf.report.build import build_report, read_jsonl, write_report

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "data/support"))
import generate  # noqa: E402
import gold  # noqa: E402

RECIPE = ROOT / "recipes/quickstart.yaml"
POLICIES = "dpo,ppo"
_SEED = 1000
"""Of the questions; those that ship come from seed 0."""
_LEFT_OUT = 0.001
"""A weight at which no vote is used."""
_PATIENCE = 300.0
"""Seconds in which the arena must have something to judge."""


class Annotator:
    """Somebody who judges over HTTP what the arena shows.

    Args:
        url: Where the arena is.
        cases: The questions' columns, by their text: what he knows of the customer.
        noise: Share of votes that go to the other reply.
    """

    def __init__(self, url: str, cases: dict[str, dict[str, Any]], noise: float) -> None:
        self.url, self.cases, self.noise = url, cases, noise
        self.random = random.Random(0)
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.browser = urllib.request.build_opener(cookies)
        page = self.browser.open(urllib.request.Request(url, headers={"Accept": "text/html"})).read().decode()
        found = re.search(r'name="csrf-token" content="([^"]+)"', page)
        assert found is not None, "the page has no token"
        self.token = found[1]
        self.post("/name", {"name": "simulated"})

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Send what a page sends."""
        headers = {"Content-Type": "application/json", "X-CSRF-Token": self.token, "Origin": self.url}
        data = json.dumps(body).encode()
        self.browser.open(urllib.request.Request(self.url + path, data, headers)).close()

    def next(self) -> dict[str, Any] | None:
        """What is judged next; None where there is nothing more."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            shown = json.load(self.browser.open(self.url + "/next"))
            if shown["ballot"] is not None:
                return shown
            if not shown["preparing"]:
                return None
            time.sleep(0.2)
        raise SystemExit("the arena prepares no comparison")

    def judge(self, shown: dict[str, Any]) -> str:
        """The verdict on two replies."""
        case = self.cases[shown["prompt"][-1]["content"]]
        first, second = (gold.score([None], [shown[side]], **{key: [case[key]] for key in case})[0] for side in "ab")
        if first == second:
            return "tie"
        better, worse = ("a", "b") if first > second else ("b", "a")
        return worse if self.random.random() < self.noise else better

    def vote(self, count: int) -> Counter[str]:
        """Cast votes, as many or as there are comparisons."""
        said: Counter[str] = Counter()
        while said.total() < count and (shown := self.next()) is not None:
            verdict = self.judge(shown)
            self.post("/votes", {"ballot": shown["ballot"], "verdict": verdict, "seconds": 1.0})
            said[verdict] += 1
        return said


def questions(count: int, path: Path) -> dict[str, dict[str, Any]]:
    """Write new questions; returns their columns by their text."""
    customers = generate.Customers(random.Random(_SEED))
    cases = [customers.draw(held_out=False) for _ in range(count)]
    rows = [{"prompt": generate.user(customers.message(case)), **asdict(case)} for case in cases]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {row["prompt"][-1]["content"]: {key: row[key] for key in asdict(cases[0])} for row in rows}


@contextlib.contextmanager
def arena(run_dir: Path, file: Path) -> Iterator[str]:
    """Serve the arena of a run; gives its address."""
    command = [sys.executable, "-m", "rlhf.cli", "arena", str(run_dir), "--policies", POLICIES, "--prompts", str(file)]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        said = (re.search(r"http://[\d.]+:\d+", line) for line in process.stdout)
        address = next((found[0] for found in said if found), None)
        if address is None:
            raise SystemExit("the arena did not start")
        yield address
    finally:
        process.terminate()
        process.wait()


def copied(run_dir: Path, project: ProjectConfig, *without: str) -> None:
    """Copy a run to where a project has its own."""
    shutil.copytree(run_dir, project.run_dir, ignore=shutil.ignore_patterns(*without))
    config = os.path.relpath(project.path.resolve(), project.run_dir.resolve())
    write_json(project.run_dir / OWNER, {"config": config, "name": project.name, "overrides": project.overrides})


def first_round(folder: Path, finished: Path | None) -> ProjectConfig:
    """A finished run of the quickstart in a folder: a copy, or trained there."""
    project = load_project(RECIPE, [f"output_dir={folder}"])
    if finished is not None:
        copied(finished, project, "round-*", "arena")
    runner.run(project)
    return project


def second_round(project: ProjectConfig) -> Any:
    """Train the second round; returns what its report says of the rounds."""
    made = rounds.begin(project, 2)
    runner.run(made)
    write_report(made.run_dir)
    return build_report(made.run_dir)["rounds"]


def without_votes(project: ProjectConfig, folder: Path) -> ProjectConfig:
    """A copy of the run whose second round uses no vote."""
    control = load_project(RECIPE, [f"output_dir={folder}", f"rounds.votes={_LEFT_OUT}"])
    copied(project.run_dir, control, "round-*")
    return control


def beside(control: ProjectConfig, project: ProjectConfig) -> Comparison:
    """The second round with the votes beside the one without, by the true quality on the same prompts."""
    files = (made.run_dir / "round-2/evaluate/samples.jsonl" for made in (control, project))
    joined: Any = [
        {**one, "replies": {"without": one["replies"]["dpo"], "with": other["replies"]["dpo"]}}
        for one, other in zip(*map(read_jsonl, files), strict=True)
    ]
    return compare(joined, "with", "without", "gold")


def table(results: dict[str, Any]) -> str:
    """What came out, as Markdown."""
    lines = ["| Round | Policy | True quality [95%] | Difference to round 1 [95%] | Verdict |", "|---|---|---|---|---|"]
    for name, made in results.items():
        for each in made["rounds"][0 if name == "votes" else 1 :]:
            score = each["scores"]["gold"]
            low, high = score["ci"]
            cells = [str(each["round"]), each["label"], f"{score['mean']:.3f} [{low:.3f}, {high:.3f}]", "–", "–"]
            if each["round"] > 1:
                row = next(row for row in made["comparisons"] if row["judge"] == "gold")
                low, high = row["difference_ci"]
                cells[0] += ", without votes" if name != "votes" else f", {each['votes']} votes"
                cells[3:] = [f"{row['mean_difference']:+.3f} [{low:.3f}, {high:.3f}]", row["verdict"]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sentence(row: Comparison) -> str:
    """The comparison with the control."""
    low, high = row["difference_ci"] or (math.nan, math.nan)
    return f"With votes less without: {row['mean_difference']:+.3f} [{low:.3f}, {high:.3f}], {row['verdict']}."


def main() -> None:
    """Read the arguments, run both rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of the quickstart, which is copied")
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary folder if not given")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/rounds.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        project = first_round(folder, args.run)
        file = folder / "questions.jsonl"
        cases = questions(args.votes + args.votes // 5, file)  # equal replies are not shown
        with arena(project.run_dir, file) as url:
            said = Annotator(url, cases, args.noise).vote(args.votes)
        control = without_votes(project, folder / "control")
        results = {"votes": second_round(project), "control": second_round(control)}
        compared = beside(control, project)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    kept = {"votes": dict(said), "noise": args.noise, "policies": POLICIES, "rounds": results, "beside": compared}
    args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"{table(results)}\n\n{sentence(compared)}")


if __name__ == "__main__":
    main()
