"""What checkpoints and the look at numbers that are not finite cost a training, at the default interval.

    python benchmarks/checkpoint_cost.py [--config recipes/quickstart.yaml] [--repeats 3]

Every stage of the config that trains runs in turn, so many times; `save_steps` is what it is by default, a fifth of the
run. Inside of a training the clock runs in `_save_checkpoint` (weights, states, hashes, fsync, the rename, and what it
deletes; `seal` is the part from the hashes on) and in `_checked` (the check of a step's losses and gradient). Their
share is of the time that the training takes without them. Writes `results/checkpoint_cost.json`.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setting import environment

from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig
from rlhf.pipeline.execute import quiet_environment
from rlhf.workflow import parents_of, planned

ROOT = Path(__file__).parents[1]
STAGES = ("sft", "reward", "dpo", "ppo")
LIMIT = 0.05
"""Share of a training's time."""


def timed(seconds: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which adds the time that it takes to a sum."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - started
            seconds[f"{name} times"] += 1

    return wrapper


def put_clocks() -> Counter[str]:
    """Have the clock run in all trainers; returns where their times are added up."""
    from rlhf.training import checkpoints
    from rlhf.training.trainer import ResumableTrainer

    seconds: Counter[str] = Counter()
    for name in ("train", "_save_checkpoint", "_checked"):
        setattr(ResumableTrainer, name, timed(seconds, name, getattr(ResumableTrainer, name)))
    checkpoints.seal = timed(seconds, "seal", checkpoints.seal)
    return seconds


def run(project: ProjectConfig, stage: str, seconds: Counter[str]) -> dict[str, float]:
    """Run a stage, and its parents before where they are missing; the seconds of the stage."""
    from rlhf.pipeline.execute import run_stage

    for parent in parents_of(project, stage):
        if not (project.run_dir / parent).exists():
            run(project, parent, seconds)
    seconds.clear()
    run_stage(project, stage)
    return dict(seconds)


def shares(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the runs of a stage: seconds, and shares of the training without what is measured."""
    rest = [one["train"] - one["_save_checkpoint"] - one["_checked"] for one in runs]
    found = {"seconds": statistics.median(one["train"] for one in runs)}
    for name in ("_save_checkpoint", "seal", "_checked"):
        found[name] = statistics.median(one[name] / left for one, left in zip(runs, rest, strict=True))
    found["together"] = statistics.median(
        (one["_save_checkpoint"] + one["_checked"]) / left for one, left in zip(runs, rest, strict=True)
    )
    return {**found, "checkpoints": runs[0]["_save_checkpoint times"], "steps": runs[0]["_checked times"]}


def main() -> None:
    """Print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "recipes/quickstart.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/checkpoint_cost.json")
    args = parser.parse_args()
    quiet_environment()
    seconds = put_clocks()
    runs: dict[str, list[dict[str, float]]] = {stage: [] for stage in args.stages.split(",")}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(args.repeats):
            project = load_project(args.config, [f"output_dir={scratch}", f"name=cost-{repeat}", "gate=warn"])
            for stage in planned(project):
                if stage in runs:
                    runs[stage].append(run(project, stage, seconds))
    results = {stage: shares(measured) for stage, measured in runs.items() if measured}
    print("| Stage | Training, s | Steps | Checkpoints | Writing them | of it hashes, fsync | Checks | Together |")
    print("|---|---|---|---|---|---|---|---|")
    for stage, row in results.items():
        cells = [f"{row['seconds']:.1f}", f"{row['steps']:.0f}", f"{row['checkpoints']:.0f}"]
        cells += [f"{row[name]:.2%}" for name in ("_save_checkpoint", "seal", "_checked", "together")]
        print(f"| {stage} | {' | '.join(cells)} |")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"rows": results, "runs": runs, "environment": environment(), "limit": LIMIT}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
