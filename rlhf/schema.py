"""Names and types of the trainers' config fields, read from source: importing them would import torch.

A stage takes every field of its trainer's config class (`trl.DPOConfig` and so on). To refuse a misspelt key before
anything runs, and still start in milliseconds, the class bodies of the installed packages are parsed, not executed.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any

STAGE_CONFIGS: dict[str, tuple[tuple[str, str], ...]] = {
    stage: (
        ("transformers/training_args.py", "TrainingArguments"),
        ("trl/trainer/base_config.py", "_BaseConfig"),
        (f"trl/trainer/{stage}_config.py", name),
    )
    for stage, name in (("sft", "SFTConfig"), ("reward", "RewardConfig"), ("dpo", "DPOConfig"))
} | {"ppo": (("transformers/training_args.py", "TrainingArguments"), ("rlhf/trainers/ppo_config.py", "PPOConfig"))}
"""Stage name: the classes, base first, whose annotated fields it takes."""

STAGE_CONFIGS["gold"] = STAGE_CONFIGS["reward"]  # a reward model too, on other pairs

RESERVED = {
    "output_dir", "seed", "data_seed", "model_init_kwargs", "resume_from_checkpoint", "trust_remote_code",
    "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
}  # fmt: skip
"""Fields that the project settles for every stage; a stage may not set them. Only `rlhf publish` pushes."""

_SCALARS = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


@functools.cache
def trainer_fields(stage: str) -> dict[str, str]:
    """Field name -> annotation (as text) of a stage's trainer config."""
    fields: dict[str, str] = {}
    for file, class_name in STAGE_CONFIGS[stage]:
        fields.update(_class_fields(file, class_name))
    return {name: kind for name, kind in fields.items() if name not in RESERVED and not name.startswith("_")}


@functools.cache
def _class_fields(file: str, class_name: str) -> dict[str, str]:
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)  # a top-level name: nothing is imported
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / rest).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def type_problem(value: Any, annotation: str) -> str | None:
    """What is wrong with a value for a field of this annotation, if it can be said without importing; else None."""
    kinds = {kind.strip() for kind in annotation.strip("\"'").split("|")}
    if value is None:
        return None if "None" in kinds or "Optional" in annotation else f"must not be null (it is a {annotation})"
    kinds.discard("None")
    if not kinds <= set(_SCALARS):
        return None
    allowed = tuple(kind for name in kinds for kind in _SCALARS[name])
    wrong = not isinstance(value, allowed) or (isinstance(value, bool) and "bool" not in kinds)
    return f"expected {' or '.join(sorted(kinds))}, not {value!r}" if wrong else None
