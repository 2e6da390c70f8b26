"""DPO and reward models of this project against TRL 1.16: speed and memory, and what each speedup alone gives.

usage: python benchmarks/preference.py [--pairs FILE] [--count 40] [--repeats 3] [--rows dpo:trl,dpo:ours] [--ratio 2]

Every run is a process of its own, so that its peak of resident memory is that row's alone; the rows take turns. What is
timed is `trainer.train()`, one epoch. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from setting import (
    SUPPORT,
    Size,
    chosen_rows,
    make_model,
    make_tokenizer,
    parser,
    peak_rate,
    print_table,
    run_program,
    show,
    size_of,
    spread,
    turns,
    write_result,
)

from rlhf.preflight.arithmetic import preference_flops

_ANSWER = "\n\nAssistant:"
_COMPLETION = 96
"""Tokens of a completion where the ratio of prompt to completion is given."""
TRL = ("trl", "trl-best")


@dataclass(frozen=True)
class Job:
    """What one run is told."""

    kind: str = "dpo"
    """`dpo` or `reward`."""
    ours: bool = False
    fold: bool = False
    head: bool = False
    buckets: bool = False
    per_device: int = 8
    """Pairs of a micro-batch; accumulation makes up the rest of the step."""
    step: int = 8
    """Pairs of a step."""
    lora: bool = False
    bf16: bool = False
    checkpointing: bool = False
    by_length: bool = False
    """Whether TRL's batches are of like lengths (`train_sampling_strategy`)."""
    liger: bool = False
    """Whether TRL uses liger's kernels, where they are installed."""
    device: str = "cpu"
    max_length: int = 1024
    threads: int | None = None


_SPEEDUPS = {
    "trl": Job(),
    "trl-best": Job(per_device=1),
    "off": Job(ours=True),
    "fold": Job(ours=True, fold=True),
    "head": Job(ours=True, head=True),
    "buckets": Job(ours=True, buckets=True),
    "fold+head": Job(ours=True, fold=True, head=True),
    "ours": Job(ours=True, fold=True, head=True, buckets=True),
}
ROWS = {
    f"{kind}:{name}": replace(job, kind=kind)
    for kind in ("dpo", "reward")
    for name, job in _SPEEDUPS.items()
    if kind == "dpo" or "head" not in name
}
"""The rows of the table."""
for _kind in ("dpo", "reward"):
    for _name in ("trl", "trl-best", "ours"):
        ROWS[f"{_kind}:{_name}:lora"] = replace(ROWS[f"{_kind}:{_name}"], lora=True)
_BEST_ON_GPU = {"per_device": 16, "by_length": True, "liger": True}
ON_GPU = {"trl": {"per_device": 8}, "trl-best": _BEST_ON_GPU}
"""What differs there, with steps of 16 pairs: `trl-best` takes a step at once, of like lengths, with liger's kernels.
Rows of ours take a step at once too."""


def on_device(name: str, job: Job, device: str) -> Job:
    """A row's job as it runs on a device."""
    if device == "cpu":
        return job
    return replace(job, step=16, device=device, **ON_GPU.get(name.split(":")[1], {"per_device": 16}))


def read_pairs(path: Path | None) -> list[dict[str, str]]:
    """Pairs whose sides differ after the last turn of the user's, in the order of the file."""
    pairs = []
    if path is None:
        for row in map(json.loads, SUPPORT.read_text(encoding="utf-8").splitlines()):
            prompt, chosen, rejected = (row[key][0]["content"] for key in ("prompt", "chosen", "rejected"))
            pairs.append(
                {"prompt": f"\n\nHuman: {prompt}{_ANSWER}", "chosen": f" {chosen}", "rejected": f" {rejected}"}
            )
        return pairs
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for row in map(json.loads, file):
            cut = row["chosen"].rfind(_ANSWER) + len(_ANSWER)
            prompt, chosen, rejected = row["chosen"][:cut], row["chosen"][cut:], row["rejected"][cut:]
            if row["rejected"].startswith(prompt) and chosen.strip() and rejected.strip() and chosen != rejected:
                pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def at_ratio(
    pairs: list[dict[str, str]], tokenizer: Any, ratio: float, count: int, completion: int
) -> list[dict[str, str]]:
    """Pairs of equal lengths, the prompt `ratio` times as long as a completion, cut from the text of all pairs."""
    text = "".join(pair["prompt"] + pair["chosen"] + pair["rejected"] for pair in pairs[: 40 * count])
    stream = tokenizer(text)["input_ids"]
    sizes = (round(ratio * completion), completion, completion)
    if len(stream) < count * sum(sizes):
        raise SystemExit(f"{count} pairs of {sum(sizes)} tokens wanted, {len(stream)} tokens there")
    equal = []
    for number in range(count):
        begin, row = number * sum(sizes), []
        for size in sizes:
            row.append(tokenizer.decode(stream[begin : begin + size]))
            begin += size
        equal.append(dict(zip(("prompt", "chosen", "rejected"), row, strict=True)))
    return equal


def write_setting(folder: Path, args: argparse.Namespace, size: Size) -> None:
    """Write model, tokenizer and pairs, once for all runs."""
    pairs = read_pairs(args.pairs)
    tokenizer = make_tokenizer([pair["prompt"] + pair["chosen"] for pair in pairs], size.vocabulary)
    tokenizer.save_pretrained(folder)
    make_model(size).save_pretrained(folder)
    if args.ratio is not None:
        pairs = at_ratio(pairs, tokenizer, args.ratio, args.count, min(_COMPLETION, 2 * size.reply))
    if len(pairs) < args.count:
        raise SystemExit(f"{args.count} pairs wanted, {len(pairs)} there")
    (folder / "pairs.json").write_text(json.dumps(pairs[: args.count]), encoding="utf-8")


def run_all(rows: dict[str, Job], args: argparse.Namespace, size: Size, peak: float) -> list[dict[str, Any]]:
    """All runs, the rows taking turns."""
    runs, model = [], size.model()
    with tempfile.TemporaryDirectory() as folder:
        write_setting(Path(folder), args, size)
        for repeat, name in turns(rows, args):
            job = rows[name]
            result = run_program(name, "preference_run.py", folder, json.dumps(asdict(job))) | {"repeat": repeat}
            dpo = job.kind == "dpo"
            flops = preference_flops(model, result.pop("sides"), lora=job.lora, reference=dpo, head=dpo)
            runs.append(result | {"flops": flops, "mfu": flops / result["seconds"] / peak})
            print(
                f"{repeat + 1}/{args.repeats} {name}: {result['seconds']:.1f} s, {result['peak_mb']:.0f} MB, "
                f"last loss {result['losses'][-1]:.5f}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return runs


def summarise(runs: list[dict[str, Any]], count: int) -> dict[str, dict[str, Any]]:
    """Speed and memory of each row, their ratios to TRL's rows of the same kind, and how far losses are from TRL's."""
    grouped: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        grouped[run["row"]].append(run)
    table: dict[str, dict[str, Any]] = {}
    for name, repeats in grouped.items():
        keys = ("seconds", "cpu_seconds", "peak_mb", "mfu")
        table[name] = {key: spread([run[key] for run in repeats]) for key in keys}
        table[name]["pairs_per_second"] = spread([count / run["seconds"] for run in repeats])
    for name, row in table.items():
        kind, _, *lora = name.split(":")
        for baseline in TRL:
            theirs = table.get(":".join([kind, baseline, *lora]))
            if theirs is None:
                continue
            row[f"speed_to_{baseline}"] = theirs["seconds"]["median"] / row["seconds"]["median"]
            row[f"memory_to_{baseline}"] = row["peak_mb"]["median"] / theirs["peak_mb"]["median"]
        plain = ":".join([kind, "trl", *lora])
        if plain in grouped and len(grouped[name][0]["losses"]) == len(grouped[plain][0]["losses"]):
            both = zip(grouped[name][0]["losses"], grouped[plain][0]["losses"], strict=True)
            row["loss_difference"] = max(abs(ours - theirs) for ours, theirs in both)
    return table


def print_summary(table: dict[str, dict[str, Any]]) -> None:
    """The table, in Markdown."""
    baselines = [name for name in TRL if any(row.split(":")[1] == name for row in table)]
    header = ["row", "pairs/s [min–max]", *(f"× {name}" for name in baselines), "peak MB [min–max]",
              *(f"of {name}" for name in baselines), "MFU", "loss − TRL's"]  # fmt: skip
    rows = []
    for name, mine in table.items():
        speeds = [f"{mine.get(f'speed_to_{other}', float('nan')):.2f}" for other in baselines]
        shares = [f"{mine.get(f'memory_to_{other}', float('nan')):.2f}" for other in baselines]
        off = f"{mine['loss_difference']:.0e}" if "loss_difference" in mine else ""
        cells = [*speeds, show(mine["peak_mb"], 0), *shares, f"{mine['mfu']['median']:.0%}", off]
        rows.append([name, show(mine["pairs_per_second"]), *cells])
    print_table(header, rows)


def options() -> argparse.Namespace:
    """What the command line says."""
    options = parser(
        "DPO and reward models against TRL 1.16, in turns, each run a process of its own.", "preference", 3
    )
    options.add_argument("--count", type=int, default=40, help="pairs of a run (default: %(default)s)")
    options.add_argument(
        "--ratio", type=float, help="pairs of equal lengths, prompt so many times as long as a completion"
    )
    options.add_argument("--lora", action="store_true", help="train LoRA r=16 on both sides")
    options.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on both sides")
    return options.parse_args()


def main() -> None:
    """Run, print, write."""
    args = options()
    size = size_of(args)
    named = chosen_rows(args.rows or ",".join(name for name in ROWS if not name.endswith(":lora")), ROWS)
    rows = {
        name: replace(
            on_device(name, ROWS[name], args.device), bf16=args.bf16, lora=args.lora or ROWS[name].lora,
            checkpointing=args.checkpointing, threads=args.threads,
        )
        for name in named
    }  # fmt: skip
    peak = peak_rate(args)
    runs = run_all(rows, args, size, peak["flops"])
    table = summarise(runs, args.count)
    print_summary(table)
    environment = [run.pop("environment") for run in runs][-1]
    jobs = {name: asdict(job) for name, job in rows.items()}
    write_result(args.out, size, args, environment=environment, peak=peak, jobs=jobs, rows=table, runs=runs)


if __name__ == "__main__":
    main()
