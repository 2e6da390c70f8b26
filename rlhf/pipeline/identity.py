"""What decides what a stage produces, so that a change of it makes the stage stale. Light: no torch.

Every setting decides, unless `NOT_DECIDING` or `TRAINER_NOT_DECIDING` names it with the reason. Where a part names its
settings one by one, as that of a reward does, `_unhandled` adds those that it does not name.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import rlhf
from rlhf.artifacts.hashing import sha256_file
from rlhf.artifacts.json_files import read_object
from rlhf.artifacts.manifest import PACKAGES, Manifest, artifact_hash, read_manifest
from rlhf.config.project import ModelConfig, ProjectConfig, RewardConfig
from rlhf.data.prepare import fingerprints
from rlhf.data.splits import half_for
from rlhf.models.settings import ADAPTER_CONFIG
from rlhf.rewards.function import argument_files, function_fingerprint
from rlhf.training.defaults import non_default_fields, rows_of_step
from rlhf.workflow import guarded_by, kind_of, parent_of, parents_of, rewards_of, rows_from, stage_of

NOT_DECIDING = {
    "ProjectConfig.name": "names the folder",
    "ProjectConfig.output_dir": "says where the folder is",
    "ProjectConfig.path": "the file may lie anywhere; what it says decides",
    "ProjectConfig.overrides": "what they change is among the settings",
    "ProjectConfig.gate": "what follows a verdict, which stays as it is",
    "ProjectConfig.report_to": "what is logged",
    "PublishConfig.to": "publishing follows the run",
    "PublishConfig.merge": "publishing follows the run",
    "PublishConfig.private": "publishing follows the run",
    "ModelConfig.attn_implementation": "another way to the same numbers, up to rounding",
    "StageConfig.fold": "another way to the same numbers, up to rounding",
    "SourceConfig.streaming": "how rows are read, not which",
    "ProjectConfig.round": "what a round trains on and starts from decides",
    "RoundsConfig.start": "decides what a round starts from, which counts as its base model",
    "RoundsConfig.stages": "decides which stages a round has",
    "RoundsConfig.votes": "is the weight of a source of a round, and counts there",
    "RoundsConfig.earlier": "multiplies the weights of sources of a round, and counts there",
    "RewardConfig.api_key_env": "where the key is, not whom it is for",
    **dict.fromkeys(
        (
            f"LimitsConfig.{name}"
            for name in (
                "dropped", "truncated", "eos_lost", "duplicates", "near_duplicates", "contradictory", "conflicting",
                "leaked", "markers", "undecodable", "other_language",
            )
        ),
        "whether a set is refused; its rows stay as they are",
    ),
}  # fmt: skip
"""Setting, as `Class.field` of `rlhf.config.project` or `rlhf.config.sets`: why a change makes no stage stale."""

_LOGS, _SAVES, _SPEED = "what is logged", "what is saved on the way", "how fast, not what"
TRAINER_NOT_DECIDING = {
    "logging_": _LOGS, "report_to": _LOGS, "run_name": _LOGS, "disable_tqdm": _LOGS, "project": _LOGS,
    "trackio": _LOGS, "log_": _LOGS, "include_num_input": _LOGS,
    "save_": _SAVES + "; with a checkpoint judge, the checkpoints that it has to choose from count after all",
    "dataloader_num": _SPEED, "dataloader_pin": _SPEED, "dataloader_persistent": _SPEED,
    "dataloader_prefetch": _SPEED, "dataset_num_proc": _SPEED, "torch_empty_cache": _SPEED,
    "vllm_": "where it is sampled, not from what",
    "per_device_eval_batch_size": "how the held-out rows are cut", "eval_accumulation_steps": _SPEED,
    "gather_for_rollouts": "another way to the same numbers, up to rounding",
}  # fmt: skip
"""Beginning of a trainer's field: why a change of it makes no stage stale."""


def identity(project: ProjectConfig, name: str) -> dict[str, Any]:
    """Everything that decides what a stage produces; the stage is stale when it changed.

    Args:
        project: The project.
        name: A stage whose parents are finished.

    Raises:
        UserError: A file that it needs is missing.
    """
    stage = stage_of(name)
    parents = {parent: _artifact_of(project, parent) for parent in parents_of(project, name)}
    parts: dict[str, Any] = {"package": rlhf.__version__, "seed": project.stage_seed(name), "parents": parents}
    if read := [reward for reward in rewards_of(project, name) if reward in project.rewards]:
        parts["rewards"] = {reward: _reward(project.rewards[reward], project) for reward in read}
    parts |= _of_policies(project, name) if stage.reads else _of_model(project, name)
    return {**parts, **(stage.identity(project, name) if stage.identity is not None else {})}


def _of_policies(project: ProjectConfig, name: str) -> dict[str, Any]:
    """What decides in a stage that looks at policies: how they are sampled, on what, and their base."""
    stage = stage_of(name)
    guarded = guarded_by(project, name)
    model = project.stage_model(guarded[0]) if guarded else project.model
    settings = dataclasses.asdict(project.evaluate)
    return {
        "evaluate": {key: value for key, value in settings.items() if key not in stage.ignores},
        "data": {role: fingerprints(project, role) for role in stage.reads},
        "base": base_fingerprint(model, project),
    }


def _of_model(project: ProjectConfig, name: str) -> dict[str, Any]:
    """What decides in a stage that makes a model: its settings, its trainer's, its base and its data."""
    role, trained = stage_of(name).data, project.has_stage(name)
    model = project.stage_model(name) if trained else project.model
    parts: dict[str, Any] = {"model": _model(model)}
    if model.chat_template and (template := project.resolve(model.chat_template)).is_file():
        parts["chat_template"] = sha256_file(template)
    if model.tokenizer and (vocabulary := project.resolve(model.tokenizer)).is_dir():
        parts["tokenizer"] = artifact_hash(vocabulary)
    if parent_of(project, name) is None:
        parts["base"] = base_fingerprint(model, project)
    if role is not None:
        rows = rows_from(project, name)  # whose hash stands among those of the parents
        parts["data"] = {role: fingerprints(project, role) if rows is None else {"sources": [{"stage": rows}]}}
        if (half := half_for(project, name)) is not None:
            parts["half"] = half
    if trained:
        settings = project.stage(name)
        parts["trainer"] = _learning_fields(name, settings.trainer)
        handled = ("model", "parent", "adapter", "checkpoint_judge", "select", "seeds", "trainer")
        if rest := _unhandled(settings, handled):
            parts["stage"] = rest
        if settings.checkpoint_judge is not None:
            parts["checkpoint_judge"] = _checkpoint_judge(project, name, settings.checkpoint_judge)
    return parts


def _model(model: ModelConfig) -> dict[str, Any]:
    """Settings of a model; where it lies, its contents stand for (`base_fingerprint`)."""
    settings = dataclasses.asdict(model)
    return {
        key: value
        for key, value in settings.items()
        if key != "name_or_path" and f"ModelConfig.{key}" not in NOT_DECIDING
    }


def base_fingerprint(model: ModelConfig, project: ProjectConfig) -> dict[str, Any]:
    """What identifies a base model: the contents of a local folder, or a hub id and revision.

    Of a folder with an adapter, such as the policy that a round starts from, it is both: the adapter's, and those of
    what it is for.
    """
    if model.name_or_path is None:
        return {"scratch": model.scratch}
    folder = project.resolve(model.name_or_path)
    if (folder / ADAPTER_CONFIG).is_file():
        below = read_object(folder / ADAPTER_CONFIG, {"base_model_name_or_path": str}, "put the adapter back")
        name, revision = below["base_model_name_or_path"], below.get("revision")
        under = base_fingerprint(ModelConfig(name_or_path=name, revision=revision), project)
        return {"adapter": artifact_hash(folder), **under}
    if folder.is_dir():
        return {"files": artifact_hash(folder)}
    return {"hub": model.name_or_path, "revision": model.revision}


def _checkpoint_judge(project: ProjectConfig, name: str, judge: str) -> dict[str, Any]:
    """What decides which checkpoint is kept: the judge, the prompts, and the checkpoints that there are."""
    trainer = non_default_fields(kind_of(name), project.stage(name).trainer)
    return {
        "judge": _reward(project.rewards[judge], project) if judge in project.rewards else judge,
        "select": project.stage(name).select,
        **{key: getattr(project.evaluate, key) for key in ("temperature", "max_new_tokens", "prompts")},
        "prompts_from": fingerprints(project, "prompts"),
        **{key: trainer.get(key) for key in ("save_steps", "save_strategy")},
    }


def _reward(reward: RewardConfig, project: ProjectConfig) -> dict[str, Any]:
    """What identifies a reward: its code, its models or its server, and its settings."""
    if reward.function is not None:
        parts = function_fingerprint(reward.function, project)
        packages = parts.pop("packages", {})
        parts["packages"] = {key: packages[key] for key in packages if key not in ("rlhf", *PACKAGES)}
        parts["arguments"] = reward.arguments
        if files := argument_files(reward.arguments, project):
            parts["argument_files"] = files
    elif reward.endpoint is not None:
        own = ("endpoint", "judge_model", "criteria", "max_tokens")
        parts = {key: getattr(reward, key) for key in own}
    else:
        models = [base_fingerprint(ModelConfig(name_or_path=name), project) for name in reward.models]
        parts = {"models": models, "label": reward.label, "std_weight": reward.std_weight}
    return {**parts, **_unhandled(reward, ("function", "model", *parts))}


def _unhandled(config: Any, handled: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a section that are not said elsewhere, where they are set to something else than their default.

    So a setting that is added decides from the first day, and where it is not used changes nothing.
    """
    kind, default = type(config), type(config)()
    return {
        field.name: value
        for field in dataclasses.fields(kind)
        if field.name not in handled
        and f"{kind.__name__}.{field.name}" not in NOT_DECIDING
        and (value := getattr(config, field.name)) != getattr(default, field.name)
    }


def _learning_fields(name: str, trainer: dict[str, Any]) -> dict[str, Any]:
    """What decides what is learned: a default that the YAML writes out is nothing new."""
    chooses = trainer.get("load_best_model_at_end")  # among the checkpoints that there are
    apart = tuple(key for key in TRAINER_NOT_DECIDING if key != "save_" or not chooses)
    return {
        key: value for key, value in non_default_fields(kind_of(name), trainer).items() if not key.startswith(apart)
    }


_LATER = {
    "trainer": ("per_device_train_batch_size", "gradient_accumulation_steps"),
    "stage": ("on_nonfinite",),
}
"""Settings that may change while a stage is interrupted: how a step's rows are cut into batches, if there stay as many,
and what becomes of numbers that are not finite, since up to then they were."""


def beginning(project: ProjectConfig, name: str, parts: dict[str, Any], processes: int | None = None) -> dict[str, Any]:
    """What decides whether an interrupted stage can go on: its identity, save for versions and how steps are cut.

    So a stage continues with another number of processes, if its steps have as many rows as before.

    Args:
        project: The project.
        name: The stage.
        parts: Its identity.
        processes: How many train it; None where that is not known yet.
    """
    rest = {key: value for key, value in parts.items() if key != "package"}
    for section, names in _LATER.items():
        if kept := {key: value for key, value in rest.pop(section, {}).items() if key not in names}:
            rest[section] = kept
    rows = None
    if processes is not None and project.has_stage(name):
        rows = rows_of_step(kind_of(name), project.stage(name).trainer, processes)
    return rest if rows is None else {**rest, "rows_of_step": rows}


def is_current(manifest: Manifest, project: ProjectConfig, name: str) -> bool:
    """Whether what a finished stage came from is what it would come from now; 1 and 1.0 are the same."""
    return as_recorded(identity(project, name)) == manifest["identity"]


def as_recorded(parts: dict[str, Any]) -> dict[str, Any]:
    """An identity as a manifest holds it."""
    return json.loads(json.dumps(parts, default=str))


def changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys, dotted, in which two identities differ."""
    keys: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if key in _LATER:  # of settings, which are left out where they are their defaults
            old, new = old or {}, new or {}
        if isinstance(old, dict) and isinstance(new, dict):
            keys += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            keys.append(f"{prefix}{key}")
    return keys


def _artifact_of(project: ProjectConfig, name: str) -> str | None:
    """The recorded hash of a stage's artefact, or None where the stage is not finished."""
    manifest = read_manifest(project.run_dir / name)
    return manifest["artifact"] if manifest else None
