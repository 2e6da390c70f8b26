"""What an artefact records about itself (`stage.json`), and how that is verified before it is used.

Light: hashes and JSON, no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import rlhf
from rlhf.config.project import ModelConfig, ProjectConfig, RewardConfig, SourceConfig
from rlhf.data.prepare import fingerprints
from rlhf.data.sources import fingerprint
from rlhf.errors import UserError
from rlhf.rewards.function import function_fingerprint
from rlhf.stages import STAGES, half_for, kind_of, parent_of, parents_of, rewards_of
from rlhf.training.defaults import said

RECORD = "stage.json"
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
_MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".jsonl")
_NOT_MODEL = {
    RECORD, "metrics.jsonl", "ledger.json", "dropped.jsonl", "findings.json", "identity.json", "rollouts.jsonl",
    "tracked.jsonl",
}  # fmt: skip
_LOGGING = (
    "logging_", "save_", "report_to", "run_name", "disable_tqdm", "project", "trackio", "log_", "include_num_input",
    "dataloader_num", "dataloader_pin", "dataloader_persistent", "dataloader_prefetch", "dataset_num_proc",
    "torch_empty_cache", "per_device_eval_batch_size", "eval_accumulation_steps",
)  # fmt: skip
"""Prefixes of trainer fields that change what is written or how fast, not what is learned."""


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex digest of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def model_files(directory: Path) -> list[Path]:
    """The files at the top of an artefact that make up its model (or its samples), in name order."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and path.suffix in _MODEL_SUFFIXES and path.name not in _NOT_MODEL
    )


def artifact_hash(directory: Path) -> str:
    """One digest over an artefact's model files, names and contents."""
    return digest({path.name: sha256_file(path) for path in model_files(directory)})


def base_fingerprint(model: ModelConfig, project: ProjectConfig) -> dict[str, Any]:
    """What identifies a base model: the contents of a local folder, or a hub id and revision."""
    if model.name_or_path is None:
        return {"scratch": model.scratch}
    folder = project.resolve(model.name_or_path)
    if folder.is_dir():
        return {"files": artifact_hash(folder)}
    return {"hub": model.name_or_path, "revision": model.revision}


def identity(project: ProjectConfig, name: str) -> dict[str, Any]:
    """Everything that decides what a stage produces; the stage is stale when it changed.

    Args:
        project: The project.
        name: A stage whose parents are finished.

    Raises:
        UserError: A file that it needs is missing.
    """
    parents = {parent: artifact_of(project, parent) for parent in parents_of(project, name)}
    what: dict[str, Any] = {"package": rlhf.__version__, "seed": project.stage_seed(name), "parents": parents}
    if read := [key for key in rewards_of(project, name) if key in project.rewards]:
        what["rewards"] = {key: _judge_fingerprint(project.rewards[key], project) for key in read}
    if sets := STAGES[name].reads:
        apart = () if name == "evaluate" else ("enabled", "group_by", "retain", "prompts", "samples")
        what["evaluate"] = {k: v for k, v in dataclasses.asdict(project.evaluate).items() if k not in apart}
        what["data"] = {one: fingerprints(project, one) for one in sets}
        what["retain"] = {
            key: fingerprint(SourceConfig(source=one.source, split=one.split), project.path.parent)
            for key, one in project.evaluate.retain.items()
            if name == "evaluate"
        }
        guarded = STAGES[name].guards
        what["base"] = base_fingerprint(project.stage_model(guarded) if guarded else project.model, project)
        return what
    model = project.stage_model(name) if name in project.stages else project.model
    what["model"] = {
        key: value
        for key, value in dataclasses.asdict(model).items()
        if key not in ("name_or_path", "attn_implementation")
    }
    if model.chat_template and (template := project.resolve(model.chat_template)).is_file():
        what["chat_template"] = sha256_file(template)
    if model.tokenizer and (vocabulary := project.resolve(model.tokenizer)).is_dir():
        what["tokenizer"] = artifact_hash(vocabulary)
    if parent_of(project, name) is None:
        what["base"] = base_fingerprint(model, project)
    role = STAGES[name].data
    if role is not None:
        what["trainer"] = _learning_fields(name, project.stages[name].trainer)
        what["data"] = {role: fingerprints(project, role)}
        if (half := half_for(project, name)) is not None:
            what["half"] = half
    if (gold := project.stages[name].gold if name in project.stages else None) is not None:
        sampling = {key: getattr(project.evaluate, key) for key in ("temperature", "max_new_tokens")}
        judge = _judge_fingerprint(project.rewards[gold], project) if gold in project.rewards else gold
        trainer = said(kind_of(name), project.stages[name].trainer)  # which checkpoints there are to choose from
        sampling |= {key: trainer.get(key) for key in ("save_steps", "save_strategy")}
        what["gold"] = {"judge": judge, "select": project.stages[name].select, **sampling}
    return what


def beginning(what: dict[str, Any], processes: int | None = None) -> dict[str, Any]:
    """What decides whether an interrupted stage can go on: its identity, save for versions, and what cuts its batches.

    Args:
        what: Its identity.
        processes: How many train it; None where that is not known yet.
    """
    rest = {key: value for key, value in what.items() if key != "package"}
    return rest if processes is None else {**rest, "processes": processes}


def _judge_fingerprint(reward: RewardConfig, project: ProjectConfig) -> dict[str, Any]:
    if reward.function is not None:
        code = function_fingerprint(reward.function, project)
        other = {
            name: version for name, version in code.pop("packages", {}).items() if name not in ("rlhf", *_PACKAGES)
        }
        return {**code, "packages": other, "arguments": reward.arguments}
    if reward.endpoint is not None:
        return {"endpoint": reward.endpoint, "judge_model": reward.judge_model, "criteria": reward.criteria,
                "max_tokens": reward.max_tokens}  # fmt: skip
    models = [base_fingerprint(ModelConfig(name_or_path=name), project) for name in reward.models]
    return {"models": models, "label": reward.label, "std_weight": reward.std_weight}


def _learning_fields(name: str, trainer: dict[str, Any]) -> dict[str, Any]:
    """What decides what is learned: a default that the YAML writes out is nothing new."""
    return {key: value for key, value in said(kind_of(name), trainer).items() if not key.startswith(_LOGGING)}


def is_current(record: dict[str, Any], project: ProjectConfig, name: str) -> bool:
    """Whether what a finished stage came from is what it would come from now."""
    return digest(identity(project, name)) == record["hash"]


def changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys, dotted, in which two identities differ."""
    found: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        both = isinstance(old, dict) and isinstance(new, dict)
        found += changes(old, new, f"{prefix}{key}.") if both else [f"{prefix}{key}"]  # type: ignore[arg-type]
    return found


def read_record(directory: Path) -> dict[str, Any] | None:
    """The contract of a finished stage, or None where the stage is not finished.

    Raises:
        UserError: The file is there but is no such record.
    """
    path = directory / RECORD
    if not path.exists():
        return None
    return read_fields(path, {}, f"delete {directory} to run the stage again")


def read_fields(path: Path, fields: dict[str, type], remedy: str) -> dict[str, Any]:
    """A JSON object that this package wrote.

    Args:
        path: The file.
        fields: What must be in it, and of what type.
        remedy: What to do where it is damaged.

    Raises:
        UserError: It is no JSON object, or lacks one of the fields.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: not valid JSON; {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; {remedy}")
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind):
            raise UserError(f"{path}: has no {name!r}, or one of another type; {remedy}")
    return value


def artifact_of(project: ProjectConfig, name: str) -> str | None:
    """The hash of a stage's artefact as recorded, or None where it is not finished."""
    record = read_record(project.run_dir / name)
    return record["artifact"] if record else None


def verify(directory: Path) -> dict[str, Any]:
    """Hold that a finished artefact is what its contract says, before it is used.

    Returns:
        The contract.

    Raises:
        UserError: The stage is not finished, or its files, or those of the base that its adapter is for, changed since.
    """
    record = read_record(directory)
    if record is None:
        raise UserError(f"{directory}: no finished stage is there (no {RECORD})")
    found = artifact_hash(directory)
    if found != record["artifact"]:
        raise UserError(
            f"{directory}: the model's files changed since the stage finished "
            f"(recorded {record['artifact'][:12]}, found {found[:12]}); run it again with --force {record['stage']}"
        )
    _verify_base(directory, record)
    return record


def _verify_base(directory: Path, record: dict[str, Any]) -> None:
    """Hold that a local base model is still the one that an adapter was trained on (hub: `probe.check_commit`)."""
    lineage = record.get("lineage") or {}
    was = ((record.get("identity") or {}).get("base") or {}).get("files")
    if was is None or not lineage.get("adapter") or not (base := Path(lineage["base"])).is_dir():
        return
    found = artifact_hash(base)
    if found != was:
        raise UserError(
            f"{directory}: its adapter is for {base}, whose files changed since the stage finished "
            f"(recorded {was[:12]}, found {found[:12]}); put the base back, or run it again with "
            f"--force {record['stage']}"
        )


def versions() -> dict[str, str]:
    """Version of this package and of those that decide what a model computes."""
    return {"rlhf": rlhf.__version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def git_sha(folder: Path) -> str | None:
    """Commit of the checkout that holds a folder, or None."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)
