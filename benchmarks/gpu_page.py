"""The section "On a GPU" of docs/scale.md, from what benchmarks/gpu.sh wrote.

usage: python benchmarks/gpu_page.py [--results benchmarks/results/gpu] [--page docs/scale.md]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from efficiency import write_section
from setting import ROOT, show

_COMMANDS = {
    "prepare": "where there is a network: wheels and pairs into `.gpu/`",
    "1": "installs the wheels; one step of every row below at the smallest size",
    "2": "DPO and reward models at 0.5B in bf16 on 2,000 pairs: TRL 1.16 as run and at its best, ours; LoRA and all "
    "weights",
    "3": "PPO, three rollouts of 128 completions after one that warms up: TRL 1.12, ours with all weights, LoRA, four "
    "completions a prompt, a shared critic; sampling against `generate`, also with a static cache",
    "4": "gradients on a 4-bit base against the dense model; the sharding code at one process over nccl; peaks of LoRA "
    "with gradient checkpointing and without",
    "page": "writes this section from the results",
}
NOT_RUN = """`benchmarks/gpu.sh 1` to `4` measure it on a machine with a GPU, in four commands of less than ten minutes.
They have not been run on one, so there is no result.

| Command | What runs |
|---|---|
""" + "\n".join(f"| `benchmarks/gpu.sh {name}` | {what} |" for name, what in _COMMANDS.items())


def read(folder: Path) -> dict[str, Any]:
    """The results that are there, by name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def tables(found: dict[str, Any]) -> str:
    """The tables of results from a GPU."""
    gpu = next(result["environment"].get("gpu", "") for result in found.values() if "environment" in result)
    lines = [f"Measured with `benchmarks/gpu.sh` on one {gpu}, medians with the smallest and largest."]
    for name, unit in (("preference", "pairs"), ("ppo", "episodes")):
        if name in found:
            lines += ["", f"| {name} | {unit} a second | × TRL at its best | peak MB | MFU |", "|---|---|---|---|---|"]
            for row, mine in found[name]["rows"].items():
                ratio = mine.get("speed_to_trl-best")
                cells = [show(mine[f"{unit}_per_second"]), f"{ratio:.2f}" if ratio else "", show(mine["peak_mb"], 0)]
                lines.append(f"| {row} | {' | '.join(cells)} | {mine['mfu']['median']:.0%} |")
    if "rollout" in found:
        lines += ["", "| sampling | useful tokens a second |", "|---|---|"]
        lines += [f"| {row} | {show(mine['tokens_per_second'], 0)} |" for row, mine in found["rollout"]["rows"].items()]
    if "gpu_checks" in found:
        lines += ["", "| check | result |", "|---|---|"]
        lines += [f"| {name} | `{json.dumps(row)}` |" for name, row in found["gpu_checks"]["rows"].items()]
    return "\n".join(lines)


def section(found: dict[str, Any]) -> str:
    """The section: tables, or what to run where nothing has been run on a GPU."""
    real = {name: result for name, result in found.items() if not result["dry_run"]}
    return tables(real) if real else NOT_RUN


def main() -> None:
    """Write the section."""
    parser = argparse.ArgumentParser(description="The section on a GPU of docs/scale.md.")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/gpu", help="folder of results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/scale.md", help="page")
    args = parser.parse_args()
    write_section(args.page, "gpu", section(read(args.results)))


if __name__ == "__main__":
    main()
