"""A finished run made in seconds, without training: adapters with random weights, and the records of the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rlhf.artifacts.json_files import write_json
from rlhf.artifacts.manifest import read_manifest
from rlhf.config.project import ModelConfig
from rlhf.models import probe
from rlhf.models.adapters import attach, join_adapters, lora_config
from rlhf.models.load import load_model, source_of
from rlhf.models.tasks import CAUSAL_LM, LABEL, Task
from rlhf.models.tokenizer import load_tokenizer, tokenizer_record
from tests.support import manifests

SEQUENCES = [[5, 9, 30, 31, 60, 7], [8, 12, 44, 45, 46], [20, 21, 22, 23, 24, 25, 26]]


def perturb(model: torch.nn.Module, seed: int) -> None:
    """Give an adapter (or all trainable weights) something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def add_stage(
    run_dir: Path,
    name: str,
    base: Path,
    parent: str | None = None,
    adapter: bool | dict = True,
    labels: int = 0,
    task: Task = CAUSAL_LM,
    unmoved: bool = False,
    **more: Any,
) -> list[float]:
    """Write a stage as the pipeline leaves it.

    Args:
        run_dir: The run's folder.
        name: The stage.
        base: The base model's folder.
        parent: The stage it starts from.
        adapter: Whether it trains an adapter (with these fields of LoraConfig), or all weights.
        labels: Outputs of its head; 0 for a policy.
        task: What a policy's head computes.
        unmoved: Whether it is what it started from.
        more: Entries of its record that replace the usual ones.

    Returns:
        The outputs of the model on `SEQUENCES`, as it was in memory.
    """
    folder = run_dir / name
    config = ModelConfig(name_or_path=str(base))
    source = source_of(config, run_dir / parent if parent else None)
    tokenizer = load_tokenizer(config)
    task = LABEL if labels else task
    model = load_model(source, config, tokenizer, task, labels or None, new_head=task.new_head).model
    if adapter:
        fields = {"r": 4, **(adapter if isinstance(adapter, dict) else {})}
        model = attach(model, lora_config(fields, task.peft, joined=source.adapter is not None), source)
    if not unmoved:
        perturb(model, len(name))
    model.save_pretrained(folder, **({"save_embedding_layers": False} if adapter else {}))
    (folder / "README.md").unlink(missing_ok=True)
    if adapter and source.adapter is not None:
        join_adapters(source.adapter, folder, folder)
    tokenizer.save_pretrained(folder)
    made = probe.make(model, SEQUENCES)
    _record(folder, name, tokenizer_record(tokenizer), source, made, parent, bool(adapter), more)
    return made["outputs"]


def _record(
    folder: Path,
    name: str,
    tokenizer: dict[str, Any],
    source: Any,
    made: Any,
    parent: str | None,
    adapter: bool,
    more: Any,
) -> None:
    files = {"sources": [{"file": f"{name}.jsonl", "sha256": "ab" * 32}, {"hub": "someone/pairs", "revision": None}]}
    parents = {parent: read_manifest(folder.parent / parent)["artifact"]} if parent else {}
    fields = {
        "seed": 3, "label": name.upper(), "method": f"Method of {name}",
        "trainer_config": ["trl.trainer.base_config:_BaseConfig"],
        "config": {
            "trainer": {"learning_rate": 1e-4, "hub_token": "hf_" + "x" * 30},
            "model": {"adapter": {"r": 4} if adapter else None, "dtype": "float32", "tokenizer": f"{Path.home()}/t"},
        },
        "git_sha": None, "parents": parents, "data": {"preferences": files},
        "tokenizer": tokenizer, "max_length": 256, "probe": made,
        "lineage": {"base": source.base, "revision": source.revision, "adapter": adapter},
        "metrics": {"loss": 1.0, "loss_before": 2.0, "train_rows": 900, "eval_rows": 100},
        "wall_time_s": 61.0, "peak_memory_mb": 900, **more,
    }  # fmt: skip
    manifests.finish(folder, **fields)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n', encoding="utf-8")
    row = {"origin": f"{Path.home()}/data/{name}.jsonl:7", "reason": "empty side"}
    entry = {
        "read": 1001,
        "dropped": {"empty side": 1},
        "held_out": 100,
        "trained": 900,
        "evaluated": 100,
        "rows": [row],
    }
    write_json(folder / "ledger.json", {"sets": {"preferences": entry}})


def add_evaluation(run_dir: Path, policies: dict[str, float]) -> None:
    """Write an evaluate stage in which each policy has this mean score from the judge `gold`."""
    folder = run_dir / "evaluate"
    folder.mkdir()
    rows = [
        {
            "index": index, "prompt": f"private prompt {index}", "columns": {},
            "replies": {
                name: [{"text": "private reply", "tokens": 9, "finished": True, "kl": 1.0,
                        "scores": {"gold": score + index % 3 / 10}}]
                for name, score in policies.items()
            },
        }
        for index in range(20)
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chain = list(policies)
    parents = dict(zip(chain[1:], chain, strict=False))
    made_from = {name: read_manifest(run_dir / name)["artifact"] for name in chain if name != "base"}
    settings = {"samples": 1, "temperature": 1.0, "max_new_tokens": 32}
    metrics = {"policies": chain, "judges": ["gold"], "parents": parents, "references": parents}
    config = {**settings, "evaluate": settings}
    manifests.finish(folder, parents=made_from, seed=3, config=config, metrics=metrics)


def tiny_run(folder: Path, base: Path) -> tuple[Path, dict[str, list[float]]]:
    """A run with sft, reward, dpo and evaluate; and what each model gave on `SEQUENCES`."""
    run_dir = folder / "runs" / "tiny"
    outputs = {
        "sft": add_stage(run_dir, "sft", base),
        "reward": add_stage(run_dir, "reward", base, "sft", labels=1),
        "dpo": add_stage(run_dir, "dpo", base, "sft"),
    }
    write_json(run_dir / "project.json", {"config": "../../tiny.yaml", "name": "tiny"})
    add_evaluation(run_dir, {"base": 0.1, "sft": 0.3, "dpo": 0.6})
    return run_dir, outputs
