"""What `rlhf check` says of memory and time, held against what stages took.

usage: python benchmarks/preflight.py --pairs FILE [--rows 'lora 2,full 8'] [--size 25m] [--time]
           [--page docs/preflight.md]

Sixteen settings: SFT, reward model, DPO and PPO, each with LoRA and with all weights, at two batch sizes. Of a project
each stage is estimated from its prepared data, then run as a stage is, in a process of its own, whose peak is read: all
that is resident, Python and its libraries included, or on a GPU what PyTorch reserved. With `--time` two steps of each
stage are run before, as `rlhf check --measure` does, and its time is estimated by them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from setting import Size, chosen_rows, environment, make_model, make_tokenizer, parser, size_of, texts_of

STAGES = ("sft", "reward", "dpo", "ppo")
BATCHES = {2: 2, 8: 1}
"""Rows of a batch, and batches of a step."""
LONGEST, ROWS = 512, 48
SIZE = "12m"
"""50 MB in float32, beside which a row of 200 tokens keeps 40 MB for the backward pass."""


def write_project(folder: Path, pairs: Path, name: str, size: Size, bf16: bool) -> Path:
    """The project of some settings: `lora 2` has all stages with LoRA, and two rows in a batch."""
    kind, batch = name.split()
    step = f"per_device_train_batch_size: {batch}, gradient_accumulation_steps: {BATCHES[int(batch)]}"
    step += f", bf16: {str(bf16).lower()}"
    common = f"{step}, num_train_epochs: 1, max_length: {LONGEST}, learning_rate: 1.0e-5, parent: base"
    source = f"{{source: {pairs}, format: hh, limit: {ROWS}, holdout: 0.1}}"
    text = f"""name: {name.replace(" ", "-")}
model: {{name_or_path: {folder / "model"}, adapter: {"{r: 16}" if kind == "lora" else "null"}}}
data:
  demonstrations: {source}
  preferences: {source}
evaluate: false
gate: warn
stages:
  sft: {{{common}}}
  reward: {{{common}}}
  dpo: {{{common}}}
  ppo: {{{common}, max_new_tokens: {size.reply}, samples_per_prompt: 2, total_episodes: {ROWS}, num_ppo_epochs: 2,
         normalize_samples: 8, sampling_batch_size: 16, per_device_eval_batch_size: 8}}
"""
    path = folder / f"{name.replace(' ', '-')}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def compare(file: Path, timed: bool) -> dict[str, Any]:
    """Of each stage of a project what is estimated, and what it took."""
    from rlhf.config.load import load_project
    from rlhf.pipeline import runner
    from rlhf.pipeline.execute import prepare_stage
    from rlhf.preflight.command import Asked, as_json, measured_steps, read_estimates, write_estimates
    from rlhf.preflight.measure import read_measured, run_measured

    project, result = load_project(file), {}
    steps = measured_steps(project) if timed else {}
    with runner.scratch(project) as copy:
        for stage in STAGES:
            copy.start(prepare_stage, stage)
        copy.start(functools.partial(write_estimates, asked=Asked(), measured=steps), STAGES[0])
        estimates = as_json(read_estimates(copy.project.run_dir / "preflight.json"))["stages"]
        said = {estimate["stage"]: estimate for estimate in estimates}
        for stage in STAGES:
            with contextlib.suppress(runner.StageFailed):
                copy.start(run_measured, stage)
                result[stage] = {
                    "estimated": said[stage], "measured": dataclasses.asdict(read_measured(copy.project, stage)),
                }  # fmt: skip
                print(stage, row_of(stage, result[stage]), file=sys.stderr, flush=True)
    return result


HEADER = ["Setting", "GB measured", "GB estimated", "off by", "peak in", "s taken", "s estimated", "off by"]


def row_of(name: str, run: dict[str, Any]) -> list[str]:
    """A line of the table."""
    measured, said = run["measured"], run["estimated"]
    taken = sum(measured["step"]) + sum(measured["rollouts"]) + measured["around"]
    least, expected, most = said["seconds"]
    timed = [f"{taken:.0f}", f"{expected:.0f} ({least:.0f} to {most:.0f})", f"{expected / taken - 1:+.0%}"]
    return [
        name, f"{measured['peak'] / 1e9:.2f}", f"{said['bytes'] / 1e9:.2f}",
        f"{said['bytes'] / measured['peak'] - 1:+.0%}", said["phase"], *(timed if said["measured"] else ["–"] * 3),
    ]  # fmt: skip


def table(runs: dict[str, Any]) -> str:
    """All settings in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER)]
    lines += [row_of(f"{stage} {name}", run) for name, stages in runs.items() for stage, run in stages.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, estimate, print, write."""
    options = parser("Estimates of memory and time against what stages took.", "preflight", 1)
    options.add_argument("--time", action="store_true", help="run two steps of each stage before, for the time")
    options.add_argument("--page", type=Path, help="page whose section `preflight` is written, docs/preflight.md")
    options.set_defaults(size=SIZE)
    args = options.parse_args()
    if args.pairs is None:
        options.error("--pairs is needed: pairs of HH, of the lengths that they have")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a stage takes a GPU where it sees one
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of this process, which imports torch below, and of others
    size, result = size_of(args), {"environment": environment(), "runs": {}}
    if args.out.is_file():
        result["runs"] = json.loads(args.out.read_text(encoding="utf-8"))["runs"]
    with tempfile.TemporaryDirectory() as place:
        folder, pairs = Path(place), args.pairs.absolute()
        make_tokenizer(texts_of(args.pairs), size.vocabulary).save_pretrained(folder / "model")
        make_model(size).save_pretrained(folder / "model")
        for name in chosen_rows(args.rows, [f"{kind} {batch}" for batch in BATCHES for kind in ("lora", "full")]):
            label = name if args.tiny else f"{name}, {args.size}"
            result["runs"][label] = compare(write_project(folder, pairs, name, size, args.bf16), args.time)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result["runs"]))
    if args.page:
        old = args.page.read_text(encoding="utf-8")
        section = re.compile(r"(?<=<!-- preflight -->\n).*?(?=<!-- end of preflight -->)", re.DOTALL)
        args.page.write_text(section.sub(lambda _: table(result["runs"]) + "\n", old), encoding="utf-8")


if __name__ == "__main__":
    main()
