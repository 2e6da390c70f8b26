"""What decides what a stage produces, so that a change of it makes the stage stale. Light: no torch."""

from __future__ import annotations

import dataclasses
from typing import Any

import rlhf
from rlhf.artifacts.hashing import digest, sha256_file
from rlhf.artifacts.manifest import PACKAGES, Manifest, artifact_hash, read_manifest
from rlhf.config.project import ModelConfig, ProjectConfig, RewardConfig, SourceConfig
from rlhf.data.prepare import fingerprints
from rlhf.data.sources import fingerprint
from rlhf.rewards.function import function_fingerprint
from rlhf.training.defaults import said
from rlhf.workflow import half_for, kind_of, parent_of, parents_of, rewards_of, stage_of

_LOGGING = (
    "logging_", "save_", "report_to", "run_name", "disable_tqdm", "project", "trackio", "log_", "include_num_input",
    "dataloader_num", "dataloader_pin", "dataloader_persistent", "dataloader_prefetch", "dataset_num_proc",
    "torch_empty_cache", "per_device_eval_batch_size", "eval_accumulation_steps",
)  # fmt: skip
"""Prefixes of trainer fields that change what is written or how fast, not what is learned."""


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
    parents = {parent: _artifact_of(project, parent) for parent in parents_of(project, name)}
    what: dict[str, Any] = {"package": rlhf.__version__, "seed": project.stage_seed(name), "parents": parents}
    if read := [key for key in rewards_of(project, name) if key in project.rewards]:
        what["rewards"] = {key: _judge_fingerprint(project.rewards[key], project) for key in read}
    if sets := stage_of(name).reads:
        apart = () if name == "evaluate" else ("enabled", "group_by", "retain", "prompts", "samples")
        what["evaluate"] = {k: v for k, v in dataclasses.asdict(project.evaluate).items() if k not in apart}
        what["data"] = {one: fingerprints(project, one) for one in sets}
        what["retain"] = {
            key: fingerprint(SourceConfig(source=one.source, split=one.split), project.path.parent)
            for key, one in project.evaluate.retain.items()
            if name == "evaluate"
        }
        gated = stage_of(name).gates
        what["base"] = base_fingerprint(project.stage_model(gated) if gated else project.model, project)
        return what
    model = project.stage_model(name) if project.has_stage(name) else project.model
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
    role = stage_of(name).data
    if role is not None:
        what["trainer"] = _learning_fields(name, project.stage(name).trainer)
        what["data"] = {role: fingerprints(project, role)}
        if (half := half_for(project, name)) is not None:
            what["half"] = half
    if (gold := project.stage(name).checkpoint_judge if project.has_stage(name) else None) is not None:
        sampling = {key: getattr(project.evaluate, key) for key in ("temperature", "max_new_tokens")}
        judge = _judge_fingerprint(project.rewards[gold], project) if gold in project.rewards else gold
        trainer = said(kind_of(name), project.stage(name).trainer)  # which checkpoints there are to choose from
        sampling |= {key: trainer.get(key) for key in ("save_steps", "save_strategy")}
        what["checkpoint_judge"] = {"judge": judge, "select": project.stage(name).select, **sampling}
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
        other = {name: version for name, version in code.pop("packages", {}).items() if name not in ("rlhf", *PACKAGES)}
        return {**code, "packages": other, "arguments": reward.arguments}
    if reward.endpoint is not None:
        return {"endpoint": reward.endpoint, "judge_model": reward.judge_model, "criteria": reward.criteria,
                "max_tokens": reward.max_tokens}  # fmt: skip
    models = [base_fingerprint(ModelConfig(name_or_path=name), project) for name in reward.models]
    return {"models": models, "label": reward.label, "std_weight": reward.std_weight}


def _learning_fields(name: str, trainer: dict[str, Any]) -> dict[str, Any]:
    """What decides what is learned: a default that the YAML writes out is nothing new."""
    return {key: value for key, value in said(kind_of(name), trainer).items() if not key.startswith(_LOGGING)}


def is_current(manifest: Manifest, project: ProjectConfig, name: str) -> bool:
    """Whether what a finished stage came from is what it would come from now."""
    return digest(identity(project, name)) == manifest["hash"]


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


def _artifact_of(project: ProjectConfig, name: str) -> str | None:
    """The recorded hash of a stage's artefact, or None where the stage is not finished."""
    manifest = read_manifest(project.run_dir / name)
    return manifest["artifact"] if manifest else None
