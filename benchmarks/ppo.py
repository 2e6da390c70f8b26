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

from setting import TINY, Size, chosen_rows, parser, print_table, run_program, show, spread, write_result, write_setting


@dataclass(frozen=True)
class Job:
    """What one run is told."""

    side: str
    """`trl` or `ours`."""
    lora: bool = False
    samples: int = 1
    """Replies to a prompt."""
    per_device: int = 8
    """Replies of a micro-batch; accumulation makes up the rest of the batch."""
    forward: int = 16
    """Replies of a forward pass without gradients."""
    batch: int = 32
    episodes: int = 64
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
}
"""The rows of the table. README.md says how the sizes were chosen."""


def run_all(rows: dict[str, Job], args: argparse.Namespace, size: Size) -> list[dict[str, Any]]:
    """All runs, the rows taking turns."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        write_setting(Path(folder), args.pairs, size, args.episodes)
        for repeat in range(args.repeats):
            for name, job in rows.items():
                interpreter = args.trl_python if job.side == "trl" else sys.executable
                told = json.dumps(asdict(replace(job, seed=repeat)))
                result = run_program(name, f"ppo_{job.side}.py", folder, told, interpreter=interpreter)
                result |= {"repeat": repeat, "episodes_per_second": args.episodes / result["seconds"]}
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
            for key in ("episodes_per_second", "seconds", "cpu_seconds", "peak_mb", "before_mb", "reply_length")
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
              "peak MB [min–max]", *(f"of {name}" for name in baselines), "reply"]  # fmt: skip
    rows = []
    for name, mine in table.items():
        speeds = [f"{mine[f'speed_to_{other}']:.2f}" for other in baselines]
        shares = [f"{mine[f'memory_to_{other}']:.2f}" for other in baselines]
        reply = f"{mine['reply_length']['median']:.1f}"
        rows.append([name, show(mine["episodes_per_second"]), *speeds, show(mine["peak_mb"], 0), *shares, reply])
    print_table(header, rows)
    lengths = [mine["reply_length"]["median"] for mine in table.values()]
    if max(lengths) > 1.02 * min(lengths):
        print(f"\nReplies differ in length ({min(lengths):.1f} to {max(lengths):.1f}): episodes are not alike.")


def options() -> argparse.Namespace:
    """What the command line says."""
    made = parser("PPO against TRL 1.12, in turns, each run a process of its own.", "ppo", repeats=3)
    made.add_argument("--trl-python", help="interpreter of an environment with trl==1.12; without it no rows of TRL's")
    made.add_argument("--episodes", type=int, help="replies of a run, a multiple of 32 (default: 64)")
    return made.parse_args()


def main() -> None:
    """Run, print, write."""
    args = options()
    size = TINY if args.tiny else Size()
    args.episodes = args.episodes or 2 * size.batch
    if args.episodes % size.batch:
        raise SystemExit(f"--episodes must be a multiple of {size.batch}")
    jobs = {name: ROWS[name] for name in chosen_rows(args.rows, ROWS)}
    left_out = [name for name, job in jobs.items() if job.side == "trl" and not args.trl_python]
    rows = {
        name: replace(
            job, batch=size.batch, episodes=args.episodes, reply=size.reply, threads=args.threads,
            per_device=min(job.per_device, size.batch), forward=min(job.forward, size.batch),
        )
        for name, job in jobs.items() if name not in left_out
    }  # fmt: skip
    runs = run_all(rows, args, size)
    table = summarise(runs)
    print_summary(table)
    if left_out:
        print(f"\nLeft out for want of --trl-python: {', '.join(left_out)}")
    environments = {ROWS[run["row"]].side: run.pop("environment") for run in runs}
    write_result(
        args.out, size, args, environments=environments, left_out=left_out,
        jobs={name: asdict(job) for name, job in rows.items()}, rows=table, runs=runs,
    )  # fmt: skip


if __name__ == "__main__":
    main()
