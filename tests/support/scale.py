"""Every stage on two CPU processes, by every engine and of both kinds of weights: the table of docs/scale.md.

`python -m tests.support.scale --page docs/scale.md --out benchmarks/results/scale.json` takes about a quarter of
an hour. Each cell holds what was seen: the largest difference to DDP, or the line that refuses it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.launches import ROOT, ZERO, environment, on_cpus

ENGINES = {"ddp": "DDP", "fsdp2": "FSDP2", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
KINDS = {"lora": "LoRA", "all": "all weights"}
STAGES = ("sft", "reward", "dpo", "kto", "ppo")
STEPS = {
    "max_steps": 4, "save_steps": 2, "learning_rate": 1e-3, "logging_steps": 1, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
}  # fmt: skip
PPO = {
    "max_new_tokens": 8, "num_ppo_epochs": 2, "normalize_samples": 8, "advantage": "gae", "save_steps": 2,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
}  # fmt: skip
BLOCK = re.compile(r"(?<=<!-- what runs -->\n).*?(?=<!-- end of what runs -->)", re.DOTALL)
CLOSE = 1e-4
"""Largest difference that rounding explains here, of losses, gradient norms and weights after four steps."""


def make(folder: Path, base: Path, kind: str) -> None:
    """Write a project whose stages train as `STEPS` says."""
    from tests.support.projects import write_project

    folder.mkdir(parents=True)
    stages = {stage: {**STEPS, **(PPO if stage == "ppo" else {})} for stage in STAGES}
    adapter = {"r": 4} if kind == "lora" else None
    write_project(folder, base, stages=stages, model={"name_or_path": str(base), "adapter": adapter})


def launch(folder: Path, engine: str, stages: Iterable[str], timeout: int = 900) -> str | None:
    """Run stages by an engine; None, or the end of what a launch that failed wrote to stderr."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(on_cpus(engine, folder))]
    command += [str(ROOT / "tests/support/scale_child.py"), str(folder), *stages]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), timeout=timeout, cwd=folder
    )
    (folder / f"{'-'.join(stages)}.log").write_text(done.stdout + done.stderr)
    return None if done.returncode == 0 else done.stderr[-3000:]


def rows(run: Path) -> list[dict[str, Any]]:
    """The logged steps of a stage."""
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in log if "loss" in row]


def weights(run: Path) -> dict[str, Any]:
    """The tensors of what a stage left."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(run.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def difference(ours: Path, theirs: Path) -> dict[str, float]:
    """The largest differences of two stages: of losses and gradient norms, relative to those, and of weights."""
    pairs = list(zip(rows(ours), rows(theirs), strict=True))
    result = {
        name: max(abs(row[name] - other[name]) / max(1e-3, abs(other[name])) for row, other in pairs)
        for name in ("loss", "grad_norm")
    }
    own, other = weights(ours), weights(theirs)
    result["weights"] = max(float((own[name].float() - other[name].float()).abs().max()) for name in other)
    return result


def artefact(run: Path) -> dict[str, list[int]]:
    """The files that a stage left, and names and sizes of its tensors."""
    files = {path.name: [] for path in run.iterdir() if path.is_file()}
    return {**files, **{name: list(tensor.shape) for name, tensor in weights(run).items()}}


def cell(folder: Path, theirs: Path, stage: str, kind: str) -> dict[str, Any]:
    """What is seen of a stage that ran in a folder, beside its run by DDP."""
    from rlhf.artifacts.hashing import sha256_file
    from rlhf.artifacts.open import open_stage
    from rlhf.publish.build import build_folder

    file = folder / f"outcomes-{stage}.json"
    if not file.is_file():
        return {"train": "failed"}
    said = json.loads(file.read_text())
    if said["train"] != "ok":
        return {"train": said["train"]}
    run, again = (folder / "runs" / name / stage for name in ("whole", "stopped"))
    manifest = json.loads((run / "stage.json").read_text())
    opened = open_stage(run)
    opened.scorer() if stage == "reward" else opened.policy()  # which must give the outputs of the probe
    with tempfile.TemporaryDirectory() as published:
        build_folder(run.parent, stage, Path(published) / "card", merge=kind == "lora" and stage != "reward")
    files = sorted(path.name for path in run.glob("*.safetensors"))
    same = said["resume"] == "ok" and all(sha256_file(run / name) == sha256_file(again / name) for name in files)
    return {
        "train": difference(run, theirs / "runs/whole" / stage),
        "save": artefact(run) == artefact(theirs / "runs/whole" / stage) and bool(manifest["probe"]),
        "resume": same or (difference(again, run) if said["resume"] == "ok" else said["resume"]),
        "next": True,
        "publish": True,
        "processes": manifest["processes"],
    }


def measure(folder: Path, base: Path, kinds: Iterable[str], stages: Iterable[str]) -> dict[str, Any]:
    """Run stages by every engine, and compare."""
    cells = {}
    stages = list(stages)
    for kind in kinds:
        for engine in ENGINES:
            if engine.startswith("zero") and not ZERO.is_dir():
                continue
            place = folder / kind / engine
            make(place, base, kind)
            for group in ([stage for stage in stages if stage != "ppo"], [stage for stage in stages if stage == "ppo"]):
                if group and (problem := launch(place, engine, group)):
                    print(f"{kind} {engine} {group}: {problem}", file=sys.stderr)
            for stage in stages:
                cells[f"{stage} {kind} {engine}"] = cell(place, folder / kind / "ddp", stage, kind)
                print(stage, kind, engine, json.dumps(cells[f"{stage} {kind} {engine}"]), flush=True)
    packages = ("torch", "transformers", "accelerate", "trl", "peft")
    return {"processes": 2, "versions": {name: version(name) for name in packages}, "cells": cells}


def table(result: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "| Stage | Weights | Engine | Weights held | Train: largest difference to DDP | Save | Resume | Next stage "
        "| Publish |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, seen in result["cells"].items():
        stage, kind, engine = name.split()
        start = f"| {stage} | {KINDS[kind]} | {ENGINES[engine]} |"
        if isinstance(seen["train"], str):
            lines.append(f"{start} | {seen['train']} | | | | |")
            continue
        held = seen["processes"]["weights_held"] / seen["processes"]["weights"]
        trained = "it is DDP" if engine == "ddp" else _differences(seen["train"])
        resumed = "the same bytes" if seen["resume"] is True else seen["resume"]
        resumed = resumed if isinstance(resumed, str) else _differences(resumed)
        marks = " | ".join("ok" if seen[what] else "differs" for what in ("next", "publish"))
        lines.append(f"{start} {held:.0%} | {trained} | {'ok' if seen['save'] else 'differs'} | {resumed} | {marks} |")
    return "\n".join(lines) + "\n"


def _differences(seen: dict[str, float]) -> str:
    return f"loss {seen['loss']:.0e}, gradient {seen['grad_norm']:.0e}, weights {seen['weights']:.0e}"


def main() -> None:
    """Run all of it, write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="where the table goes")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument("--base", type=Path, help="a model that is trained; else a tiny one is made")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = measure(folder, args.base or _tiny(folder / "base"), args.kinds, args.stages)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.page is not None:
        page = args.page.read_text(encoding="utf-8")
        args.page.write_text(BLOCK.sub(lambda _: table(result), page, count=1), encoding="utf-8")


def _tiny(folder: Path) -> Path:
    """A random Llama of two layers with tied embeddings, as the tests have."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from rlhf.models.scratch import train_tokenizer
    from tests.conftest import TEXTS

    tokenizer = train_tokenizer(iter(TEXTS), 400)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
