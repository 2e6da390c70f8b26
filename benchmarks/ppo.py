"""PPO of this project against TRL 1.12, the last release that has a PPO trainer.

usage: python benchmarks/ppo.py [--trl-python PATH] [--pairs FILE] [--episodes 64] [--repeats 3] [--rows full,lora]

Every run is a process of its own, so that its peak of resident memory is that row's alone; the rows take turns. What is
timed is `trainer.train()`. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from setting import (
    Size,
    chosen_rows,
    parser,
    peak_rate,
    print_table,
    run_program,
    show,
    size_of,
    spread,
    turns,
    write_result,
    write_setting,
)

from rlhf.preflight.arithmetic import ppo_flops


@dataclass(frozen=True)
class Job:
    """What one run is told."""

    side: str
    """`trl` or `ours`."""
    lora: bool = False
    critic: str = "separate"
    """`separate` or `shared`."""
    change: str | None = None
    """A change that is tried alone (ppo_changes.py)."""
    samples: int = 1
    """Replies to a prompt."""
    per_device: int = 8
    """Replies of a micro-batch; accumulation makes up the rest of the batch."""
    forward: int = 16
    """Replies of a forward pass without gradients."""
    batch: int = 32
    drop: int = 0
    """Rollouts at the start that are not timed."""
    episodes: int = 64
    """Replies of the rollouts that are timed."""
    device: str = "cpu"
    bf16: bool = False
    """Frozen weights in bfloat16, and what is trained under autocast."""
    reply: int = 48
    threads: int | None = None
    seed: int = 0


ROWS = {
    "trl": Job("trl"),
    "trl-best": Job("trl", per_device=2),
    "trl-lora": Job("trl", lora=True, per_device=4),
    "full": Job("ours", per_device=4),
    "lora": Job("ours", lora=True, per_device=2),
    "lora-4": Job("ours", lora=True, samples=4, per_device=4),
    "lora-shared": Job("ours", lora=True, per_device=2, critic="shared"),
    "lora-4-shared": Job("ours", lora=True, samples=4, per_device=4, critic="shared"),
}
"""The rows of the table. README.md says how the sizes were chosen."""
TRIED = {
    "lora+one-backward": replace(ROWS["lora"], change="one-backward"),
    "lora+bf16": replace(ROWS["lora"], bf16=True),
    **{
        f"lora-shared+{change}": replace(ROWS["lora-shared"], change=change)
        for change in ("merged-measuring", "scale-low-rank", "merged-training", "no-reference", "no-values")
    },
    "lora-shared+bf16": replace(ROWS["lora-shared"], bf16=True),
    **{f"lora-shared+{size}-at-once": replace(ROWS["lora-shared"], per_device=size) for size in (1, 4, 8)},
}
"""Rows that run only if they are named: one change each."""


ON_GPU = {"trl-best": {"per_device": 32, "forward": 64}, "trl": {"forward": 64}}
"""What differs there: larger passes. Rows of ours take as much as `trl-best`."""


def on_device(name: str, job: Job, device: str) -> Job:
    """A row's job as it runs on a device."""
    if device == "cpu":
        return job
    return replace(job, **(ON_GPU["trl-best"] if job.side == "ours" else ON_GPU.get(name, ON_GPU["trl-best"])))


def run_all(rows: dict[str, Job], args: argparse.Namespace, size: Size, peak: float) -> list[dict[str, Any]]:
    """All runs, the rows taking turns."""
    runs, model = [], size.model()
    with tempfile.TemporaryDirectory() as folder:
        write_setting(Path(folder), args.pairs, size, args.episodes + args.drop * size.batch)
        for repeat, name in turns(rows, args):
            job = rows[name]
            interpreter = args.trl_python if job.side == "trl" else sys.executable
            told = json.dumps(asdict(replace(job, seed=repeat)))
            result = run_program(name, f"ppo_{job.side}.py", folder, told, interpreter=interpreter)
            sequences = result.pop("sequences")
            flops = ppo_flops(model, sequences, lora=job.lora, epochs=4, critic=job.critic)
            flops *= args.episodes / len(sequences)
            speed = {"episodes_per_second": args.episodes / result["seconds"], "mfu": flops / result["seconds"] / peak}
            result |= {"repeat": repeat, "flops": flops, **speed}
            runs.append(result)
            print(
                f"{repeat + 1}/{args.repeats} {name}: {result['episodes_per_second']:.2f} episodes/s, "
                f"{result['peak_mb']:.0f} MB, {result['reply_length']:.1f} tokens a reply",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return runs


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Speed, memory and lengths of each row, and their ratios to each row of TRL's."""
    grouped: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        grouped[run["row"]].append(run)
    table: dict[str, dict[str, Any]] = {}
    for name, repeats in grouped.items():
        table[name] = {
            key: spread([run[key] for run in repeats])
            for key in ("episodes_per_second", "seconds", "cpu_seconds", "peak_mb", "before_mb", "reply_length", "mfu")
        }
    for mine in table.values():
        for name in (name for name in ("trl", "trl-best", "trl-lora") if name in table):
            for key, ratio in (("episodes_per_second", "speed"), ("peak_mb", "memory")):
                mine[f"{ratio}_to_{name}"] = mine[key]["median"] / table[name][key]["median"]
    return table


def print_summary(table: dict[str, dict[str, Any]]) -> None:
    """The table, in Markdown."""
    baselines = [name for name in ("trl", "trl-best", "trl-lora") if name in table]
    header = ["row", "episodes/s [min–max]", *(f"× {name}" for name in baselines),
              "peak MB [min–max]", *(f"of {name}" for name in baselines), "MFU", "reply"]  # fmt: skip
    rows = []
    for name, mine in table.items():
        speeds = [f"{mine[f'speed_to_{other}']:.2f}" for other in baselines]
        shares = [f"{mine[f'memory_to_{other}']:.2f}" for other in baselines]
        reply = f"{mine['reply_length']['median']:.1f}"
        cells = [*speeds, show(mine["peak_mb"], 0), *shares, f"{mine['mfu']['median']:.0%}", reply]
        rows.append([name, show(mine["episodes_per_second"]), *cells])
    print_table(header, rows)
    lengths = [mine["reply_length"]["median"] for mine in table.values()]
    if max(lengths) > 1.02 * min(lengths):
        print(f"\nReplies differ in length ({min(lengths):.1f} to {max(lengths):.1f}): episodes are not alike.")


def options() -> argparse.Namespace:
    """What the command line says."""
    made = parser("PPO against TRL 1.12, in turns, each run a process of its own.", "ppo", repeats=3)
    made.add_argument("--trl-python", help="interpreter of an environment with trl==1.12; without it no rows of TRL's")
    made.add_argument("--episodes", type=int, help="replies of a run, a multiple of a rollout's (default: two)")
    made.add_argument("--drop", type=int, default=0, help="rollouts before those that are timed (default: 0)")
    return made.parse_args()


def main() -> None:
    """Run, print, write."""
    args = options()
    size = size_of(args)
    args.episodes = args.episodes or 2 * size.batch
    if args.episodes % size.batch:
        raise SystemExit(f"--episodes must be a multiple of {size.batch}")
    known = ROWS | TRIED
    jobs = {name: known[name] for name in chosen_rows(args.rows, known if args.rows else ROWS)}
    left_out = [name for name, job in jobs.items() if job.side == "trl" and not args.trl_python]
    rows = {
        name: replace(
            job, batch=size.batch, episodes=args.episodes, reply=size.reply, threads=args.threads, drop=args.drop,
            per_device=min(job.per_device, size.batch), forward=min(job.forward, size.batch), device=args.device,
            bf16=args.bf16 or job.bf16,
        )
        for name, job in ((name, on_device(name, jobs[name], args.device)) for name in jobs if name not in left_out)
    }  # fmt: skip
    peak = peak_rate(args)
    runs = run_all(rows, args, size, peak["flops"])
    table = summarise(runs)
    print_summary(table)
    if left_out:
        print(f"\nLeft out for want of --trl-python: {', '.join(left_out)}")
    environments = {jobs[run["row"]].side: run.pop("environment") for run in runs}
    write_result(
        args.out, size, args, environments=environments, left_out=left_out, peak=peak,
        jobs={name: asdict(job) for name, job in rows.items()}, rows=table, runs=runs,
    )  # fmt: skip


if __name__ == "__main__":
    main()
