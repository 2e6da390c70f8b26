"""One YAML file is a project: YAML, then overrides, become dataclasses; an unknown key is an error.

Nothing heavy is imported here: the command line and the orchestrator read configs without torch. The fields a stage
takes are those of its trainer's config class; their names are read from the installed package's source
(`trainer_fields`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlhf.config import trainer_fields
from rlhf.config.checks import check
from rlhf.config.project import (
    EvaluateConfig,
    ModelConfig,
    ProjectConfig,
    PublishConfig,
    RetainConfig,
    RewardConfig,
    RoundsConfig,
    StageConfig,
)
from rlhf.config.ranges import shown
from rlhf.config.sets import DataConfig, DatasetConfig, LimitsConfig, SourceConfig
from rlhf.config.yaml_loader import NotYaml, parse_value, read
from rlhf.errors import UserError, unknown_name
from rlhf.secrets import remember

__all__ = [
    "DataConfig", "DatasetConfig", "EvaluateConfig", "LimitsConfig", "ModelConfig", "ProjectConfig", "PublishConfig",
    "RetainConfig", "RewardConfig", "RoundsConfig", "SourceConfig", "StageConfig", "apply_override", "load_project",
]  # fmt: skip

_OURS = {"path", "overrides", "round"}
"""Fields of a project that no YAML sets."""
_UNSAID = {"sources", "dict[str,any]", "dict[str,Any]", "list[str]", "str", "int", "[key]"}
"""Steps in pydantic's path to an error that are no keys of the YAML, but for the first step, which always is one."""


def apply_override(tree: dict[str, Any], assignment: str) -> None:
    """Set `a.b.c=value` in a nested mapping, making the mappings on the way."""
    key, separator, value = assignment.partition("=")
    if not separator or not key:
        raise UserError(f"override {shown(assignment)}: expected key=value, such as stages.dpo.beta=0.2")
    *path, last = key.split(".")
    for part in path:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
        if not isinstance(tree, dict):
            raise UserError(f"override {shown(assignment)}: {shown(part)} is not a section")
    tree[last] = parse_value(value)


def load_project(path: str | Path, overrides: Iterable[str] = ()) -> ProjectConfig:
    """Read a project.

    Args:
        path: The YAML file.
        overrides: Assignments such as `stages.dpo.beta=0.2`, applied in order.

    Raises:
        UserError: The file is missing or no YAML, a key is unknown, or a value has the wrong type.
    """
    path = Path(path)
    try:
        tree = read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except NotYaml as error:
        raise UserError(f"{path}{error.where}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping with name, model, data and stages")
    overrides = tuple(overrides)
    for assignment in overrides:
        apply_override(tree, assignment)
    return _build(tree, path, overrides)


def _build(tree: dict[str, Any], path: Path, overrides: tuple[str, ...]) -> ProjectConfig:
    tree = dict(tree)
    for ours in sorted(_OURS & tree.keys()):
        raise UserError(f"{path}: unknown key {ours!r}")
    tree["data"] = _datasets(tree.get("data"), path)
    tree["stages"] = _stages(tree.get("stages"), path)
    if tree.get("evaluate") is False:
        tree["evaluate"] = {"enabled": False}
    for section in ("rewards", "evaluate", "rounds", "publish"):
        if tree.get(section, ...) is None:  # a section left empty in YAML is null
            del tree[section]
    try:
        project = TypeAdapter(ProjectConfig).validate_python({**tree, "path": path, "overrides": overrides})
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}") from None
    check(project)
    for reward in project.rewards.values():
        remember(os.environ.get(reward.api_key_env or "", ""))
    return project


def _datasets(section: Any, path: Path) -> Any:
    """Write each dataset, given as one mapping or as a list (a mixture), as `{sources: […], holdout: …}`."""
    if not isinstance(section, dict):
        return section or {}
    result: dict[str, Any] = {}
    for name, value in section.items():
        rows = value if isinstance(value, list) else [value]
        if value is None:
            continue
        if name == "limits":
            result[name] = value
            continue
        if not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: data.{name}: expected {{source: FILE_OR_HUB_ID}} or a list of these")
        holdouts = [row["holdout"] for row in rows if "holdout" in row]
        sources = [{key: item for key, item in row.items() if key != "holdout"} for row in rows]
        result[name] = {"sources": sources, "holdout": _largest(holdouts)}
    return result


def _largest(holdouts: list[Any]) -> Any:
    """The largest of a mixture's holdouts, or the first that is no number, for which it will be refused."""
    given = [share for share in holdouts if share is not None]
    wrong = [share for share in given if not isinstance(share, int | float) or share != share]
    return wrong[0] if wrong else max(given, default=None)


_RENAMED = {
    "stages.gold": "gold_reward",
    "stages.*.gold": "checkpoint_judge",
    "select: gold": "best",
}
"""Keys and values of earlier versions: what they are called now."""


def _renamed(key: str) -> str | None:
    """What is said of a key, or a value, of an earlier version."""
    return f"it is called {_RENAMED[key]!r} now" if key in _RENAMED else None


def _stages(section: Any, path: Path) -> dict[str, Any]:
    """Part each stage's keys into ours and its trainer's, and refuse those of neither."""
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: stages: expected a mapping of stage names")
    own = {field.name for field in dataclasses.fields(StageConfig)} - {"trainer"}
    result = {}
    for name, options in section.items():
        if name not in (known := trainer_fields.trained_stages()):
            hint = _renamed(f"stages.{name}") or unknown_name(str(name), known)
            raise UserError(f"{path}: stages: unknown key {name!r}; {hint}")
        options = {} if options is None else options
        if not isinstance(options, dict):
            raise UserError(f"{path}: stages.{name}: expected a mapping")
        fields = trainer_fields.trainer_fields(name)
        for key, value in options.items():
            if (key, value) == ("select", "gold"):
                raise UserError(f"{path}: stages.{name}.select: {_renamed('select: gold')}")
            if key in own:
                continue
            if key not in fields:
                hint = _renamed(f"stages.*.{key}") or trainer_fields.unknown_field(name, str(key), own)
                raise UserError(f"{path}: stages.{name}: unknown key {key!r}; {hint}")
            if problem := trainer_fields.problem(name, key, value):
                raise UserError(f"{path}: stages.{name}.{key}: {problem}")
        trainer = {key: value for key, value in options.items() if key not in own}
        result[name] = {**{key: value for key, value in options.items() if key in own}, "trainer": trainer}
    return result


def _first_problem(error: ValidationError) -> str:
    """One line for the first thing wrong, an unknown key with its nearest known name."""
    first = error.errors(include_url=False)[0]
    steps = [str(step) for step in first["loc"]]
    where = ".".join([*steps[:1], *(step for step in steps[1:] if step not in _UNSAID)])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _owner(steps[:-1])
        hint = unknown_name(
            steps[-1], {field.name for field in dataclasses.fields(owner)} - {"path", "overrides", "round"}
        )
        return f"unknown key {where!r}; {hint}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{where!r} is missing"
    return f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {shown(first['input'])}"


def _owner(steps: list[str]) -> Any:
    """The dataclass in which the last of these keys stands."""
    by_section: Mapping[str, Any] = {
        "model": ModelConfig, "data": DataConfig, "rewards": RewardConfig, "evaluate": EvaluateConfig,
        "publish": PublishConfig, "rounds": RoundsConfig, "stages": StageConfig, "sources": SourceConfig,
        "retain": RetainConfig, "limits": LimitsConfig,
    }  # fmt: skip
    sections = [by_section[step] for step in steps if step in by_section]
    return sections[-1] if sections else ProjectConfig
