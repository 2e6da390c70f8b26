"""Counts what each process holds and receives in a training with sharded weights.

    python benchmarks/sharding.py [--tiny] [--processes 1,2,4] [--rows ppo-lora,dpo-lora]

Starts PPO and DPO on CPU processes under `recipes/accelerate/fsdp2.yaml`, on a model of benchmarks/setting.py with
float32 weights. Sets the bytes received against the formula (`expected`). Writes `results/sharding.json`, and the
tables into docs/scale.md unless `--tiny` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from setting import TINY, Size, chosen_rows, environment, write_setting

ROOT = Path(__file__).resolve().parents[1]
DOCS, BEGIN, END = ROOT / "docs/scale.md", "<!-- memory -->\n", "<!-- end of memory -->"
SMALL = Size(hidden=96, intermediate=384, layers=8, heads=6, vocabulary=2000)
"""A model for what is counted, which grows with the model and its shares do not."""
LARGE = Size(hidden=768, intermediate=3072, layers=12, heads=12)
"""A base whose weights are more than what a process needs anyway."""
ROWS = {
    f"{case}-{kind}": {"case": case, "lora": kind == "lora"} for case in ("ppo", "dpo") for kind in ("lora", "whole")
}
NAMES = {
    "ppo-lora": "PPO, LoRA",
    "ppo-whole": "PPO, all weights",
    "dpo-lora": "DPO, LoRA",
    "dpo-whole": "DPO, all weights",
}


def expected(case: str, lora: bool, sizes: dict[str, int], processes: int) -> dict[str, float]:
    """Bytes that a process receives in a rollout of PPO and in an optimizer step of one micro-batch.

    With W = L + E + H bytes in layers, embedding and head, T bytes trained by LoRA (in DPO sharded, and part of L), and
    N processes:

        PPO, LoRA    rollout  W                    the one base, once
                     step     4L + 2E + 2H + 2T    forward and backward of policy and critic, which has no head; the
                                                   embedding has no backward pass; adapters all-reduced
        PPO, whole   rollout  3W − H               policy, critic and reference
                     step     6W − 3H              each of policy and critic gathered twice, gradients scattered
        DPO, LoRA    step     3W − H + T           policy forward and backward, reference; the head stays from forward
                                                   to backward; gradients of the adapters scattered
        DPO, whole   step     4W − H               the same, the reference a model of its own

    all times (N − 1) / N.

    Args:
        case: `ppo` or `dpo`.
        lora: Whether adapters are trained.
        sizes: Bytes in `layers` with the adapters that are sharded, `embedding`, `head`, and of what is `trained`.
        processes: N.
    """
    layers, embedding, head, trained = (sizes[name] for name in ("layers", "embedding", "head", "trained"))
    whole = layers + embedding + head
    if case == "dpo":
        rollout, step = 0, 3 * whole - head + (trained if lora else whole)
    elif lora:
        rollout, step = whole, 4 * layers + 2 * embedding + 2 * head + 2 * trained
    else:
        rollout, step = 3 * whole - head, 6 * whole - 3 * head
    share = 1 - 1 / processes
    return {"rollout": rollout * share, "step": step * share}


def launched(folder: Path, job: dict[str, Any], processes: int) -> dict[str, Any]:
    """What sharding_run.py writes.

    Raises:
        SystemExit: It failed.
    """
    settings = yaml.safe_load((ROOT / "recipes/accelerate/fsdp2.yaml").read_text(encoding="utf-8"))
    launch, out = folder / "fsdp2.yaml", folder / "counted.json"
    launch.write_text(yaml.safe_dump({**settings, "mixed_precision": "no", "num_processes": processes}))
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    command += [str(Path(__file__).with_name("sharding_run.py")), str(folder), json.dumps({**job, "out": str(out)})]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/support/cpu_fsdp")])
    given = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=given, timeout=600)
    if done.returncode:
        raise SystemExit(f"{job} on {processes} processes failed:\n{done.stderr[-4000:]}")
    counted: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return counted


def measured(folder: Path, row: str, processes: int) -> dict[str, Any]:
    """What each process holds, and what one receives in a rollout and in a step, beside the formula."""
    counted = launched(folder, {**ROWS[row], "reply": 8}, processes)
    received = {
        phase: {kind: size / counted["steps"] for kind, size in counted["received"].get(phase, {}).items()}
        for phase in ("rollout", "step")
    }  # a rollout has one step
    formula = expected(ROWS[row]["case"], ROWS[row]["lora"], counted["sizes"], processes)
    return {**counted, "received": received, "expected": formula}


def tables(rows: dict[str, dict[str, Any]]) -> str:
    """Both tables, in Markdown."""
    numbers = list(next(iter(rows.values())))
    lines = ["Share of the base's weights that a process holds, the largest of all processes:", ""]
    lines += ["| | " + " | ".join(f"N = {number}" for number in numbers) + " |", "|---" * (len(numbers) + 1) + "|"]
    for row, by_number in rows.items():
        shares = [max(one["held"] / one["base"] for one in result["held"]) for result in by_number.values()]
        lines.append(f"| {NAMES[row]} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    last = numbers[-1]
    lines += ["", f"MB that a process receives on N = {last}, and how that compares with the formula:", ""]
    lines += ["| | rollout | counted / formula | step | counted / formula |", "|---|---|---|---|---|"]
    for row, by_number in rows.items():
        result, cells = by_number[last], []
        for phase in ("rollout", "step"):
            total, formula = sum(result["received"][phase].values()), result["expected"][phase]
            cells += [f"{total / 1e6:.1f}", f"{total / formula:.3f}"] if formula else ["–", "–"]
        lines.append(f"| {NAMES[row]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def loading(megabytes: float, memory: dict[str, Any]) -> str:
    """What loading took in each process, as a table."""
    lines = [
        "",
        f"MB of memory by which a process grows when it loads and shards a base of {megabytes:.0f} MB:",
        "",
    ]
    lines += ["| N | main process, at most | others, at most | afterwards, each |", "|---|---|---|---|"]
    for number, every in memory.items():
        peaks = [f"{one['peak']:.0f}" for one in every]
        others = (
            f"{min(peaks[1:], key=float)} to {max(peaks[1:], key=float)}" if peaks[2:] else "".join(peaks[1:]) or "–"
        )
        after = [one["after"] for one in every]
        lines.append(f"| {number} | {peaks[0]} | {others} | {min(after):.0f} to {max(after):.0f} |")
    return "\n".join(lines) + "\n"


def write_docs(text: str) -> None:
    """Put the tables between their marks in docs/scale.md."""
    page = DOCS.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    DOCS.write_text(before + BEGIN + text + END + rest.partition(END)[2], encoding="utf-8")


def main() -> None:
    """Print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2,4", help="numbers of processes, with commas between")
    parser.add_argument("--rows", help="rows to run, with commas between (default: all)")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters: for tests")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sharding.json")
    args = parser.parse_args()
    size = TINY if args.tiny else SMALL
    numbers, rows = args.processes.split(","), {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_setting(folder, None, size, 64)
        for row in chosen_rows(args.rows, ROWS):
            rows[row] = {number: measured(folder, row, int(number)) for number in numbers}
            print(row, flush=True)
        write_setting(folder, None, size if args.tiny else LARGE, 1)
        megabytes = (folder / "model.safetensors").stat().st_size / 2**20
        memory = {number: launched(folder, {"case": "load"}, int(number))["memory"] for number in numbers}
    text = tables(rows) + loading(megabytes, memory)
    print(text)
    if not args.tiny:
        write_docs(text)
    result = {
        "rows": rows,
        "loading": {"base_mb": megabytes, "memory": memory},
        "size": asdict(size),
        "environment": environment(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
