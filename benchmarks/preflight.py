"""What `rlhf check` says of memory and time, held against what stages took.

usage: python benchmarks/preflight.py [--rows 'sft lora 2,…'] [--pairs FILE] [--device cuda] [--page docs/preflight.md]

Sixteen settings: SFT, reward model, DPO and PPO, each with LoRA and with all weights, at two batch sizes. Each is run
as a stage of a project in a process of its own, once as a whole and once for two steps, as `--measure` does. The peak
is that of the process (VmHWM, with Python and its libraries), on a GPU what PyTorch reserved. Then the estimate is made
of the same project and the same rows.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from setting import TINY, Size, chosen_rows, make_model, make_tokenizer, parser, print_table, run_program, texts_of

SIZE = Size(hidden=256, intermediate=1024, layers=8, heads=4, kv_heads=4, reply=48)
"""12.5 million parameters: in float32 50 MB, beside which a row of 200 tokens keeps 40 MB for the backward pass."""
STAGES, BATCHES = ("sft", "reward", "dpo", "ppo"), {2: 2, 8: 1}
"""Rows of a batch, and batches of a step."""
LONGEST = 512
ROWS = 20
"""Of the set, of which a tenth is held out: two to five steps."""
_TARGET = {"memory": (-0.15, 0.25), "time": (-0.30, 0.30)}
"""By how much an estimate may be off, as a share of what was measured."""


def settings() -> list[str]:
    """Names of the rows: stage, weights, batch size."""
    return [f"{stage} {kind} {batch}" for batch in BATCHES for kind in ("lora", "full") for stage in STAGES]


def write_project(folder: Path, model: Path, pairs: Path, name: str, size: Size, device: str) -> Path:
    """The project of a setting; its reward stage is trained first where ppo needs it."""
    _, kind, batch = name.split()
    step = f"per_device_train_batch_size: {batch}, gradient_accumulation_steps: {BATCHES[int(batch)]}"
    step += ", num_train_epochs: 1, bf16: false"
    common = f"{step}, max_length: {LONGEST}, learning_rate: 1.0e-5, parent: base, save_strategy: 'no'"
    source = f"{{source: {pairs}, format: hh, limit: {ROWS}, holdout: 0.1}}"
    text = f"""name: {name.replace(" ", "-")}
output_dir: {folder / "runs"}
model: {{name_or_path: {model}, adapter: {"{r: 16}" if kind == "lora" else "null"}}}
data:
  demonstrations: {source}
  preferences: {source}
evaluate: false
stages:
  sft: {{{common}}}
  reward: {{{common}}}
  dpo: {{{common}}}
  ppo: {{{common}, max_new_tokens: {size.reply}, samples_per_prompt: 2, total_episodes: 16, num_ppo_epochs: 2,
         normalize_samples: 8, sampling_batch_size: 16, per_device_eval_batch_size: 8}}
"""
    path = folder / f"{name.replace(' ', '-')}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def measure(project: Path, stage: str) -> dict[str, Any]:
    """A stage as a whole, and two steps of it."""
    if stage == "ppo":
        run_program(f"{project.stem} reward", "preflight_run.py", str(project), "reward")
        run_program(f"{project.stem} reward", "preflight_run.py", str(project), "reward", "--steps")
    whole = run_program(project.stem, "preflight_run.py", str(project), stage)
    return {"whole": whole, "steps": run_program(project.stem, "preflight_run.py", str(project), stage, "--steps")}


def predict(file: Path, stage: str, steps: dict[str, Any], device: str) -> dict[str, Any]:
    """The estimate of a stage, its time by the two measured steps."""
    from dataclasses import replace

    from rlhf.config.load import load_project
    from rlhf.pipeline.execute import prepare_stage
    from rlhf.pipeline.folder import partial_dir
    from rlhf.preflight.estimates import Models, estimate_stage
    from rlhf.preflight.machine import Machine
    from rlhf.preflight.measure import Measured

    project = load_project(file)
    names = [field.name for field in fields(Measured)]
    measured = Measured(
        **{name: tuple(steps[name]) if isinstance(steps[name], list) else steps[name] for name in names}
    )
    prepared = replace(project, output_dir=f"{project.output_dir}-prepared")
    prepare_stage(prepared, stage)
    found = estimate_stage(project, stage, Machine.here(), partial_dir(prepared, stage) / "data", Models(), measured)
    return {"phase": found.phase, "parts": dict(found.parts), "bytes": found.bytes, "seconds": found.seconds}


def row_of(name: str, run: dict[str, Any]) -> list[str]:
    """A line of the table."""
    measured, said = run["measured"]["whole"], run["predicted"]
    memory = said["bytes"] / measured["peak"] - 1
    least, expected, most = said["seconds"]
    seconds = sum(measured["step"]) + measured["rollout"] + measured["around"]
    time = expected / seconds - 1
    return [
        name, f"{measured['peak'] / 1e9:.2f}", f"{said['bytes'] / 1e9:.2f}", f"{memory:+.0%}", said["phase"],
        f"{seconds:.0f}", f"{expected:.0f} ({least:.0f} to {most:.0f})", f"{time:+.0%}",
    ]  # fmt: skip


HEADER = ["Setting", "GB measured", "GB estimated", "off by", "peak in", "s measured", "s estimated", "off by"]


def write(path: Path, result: dict[str, Any]) -> None:
    """Write what there is so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what is not measured yet, estimate, print, write."""
    options = parser("Estimates of memory and time against what stages took.", "preflight", 1)
    options.add_argument("--again", action="store_true", help="estimate anew from the folder of an earlier call")
    options.add_argument("--no-estimate", action="store_true", help="measure alone")
    options.add_argument("--folder", type=Path, help="where projects and runs are kept (default: a temporary folder)")
    options.add_argument("--page", type=Path, help="page whose section `preflight` is written, docs/preflight.md")
    args = options.parse_args()
    size = TINY if args.tiny else SIZE
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {"runs": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = (args.folder or Path(place)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model").is_dir():
            make_tokenizer(texts_of(args.pairs), size.vocabulary).save_pretrained(folder / "model")
            make_model(size).save_pretrained(folder / "model")
        for name in chosen_rows(args.rows, settings()):
            file = write_project(folder, folder / "model", args.pairs, name, size, args.device)
            stage = name.split()[0]
            if not args.again:
                result["runs"][name] = {"measured": measure(file, stage)}
                write(args.out, result)
            run = result["runs"].get(name)
            if run is None or args.no_estimate:
                continue
            run["predicted"] = predict(file, stage, run["measured"]["steps"], args.device)
            write(args.out, result)
            print(" | ".join(row_of(name, run)), file=sys.stderr, flush=True)
    rows = [row_of(name, result["runs"][name]) for name in settings() if "predicted" in result["runs"].get(name, {})]
    print_table(HEADER, rows)


if __name__ == "__main__":
    main()
