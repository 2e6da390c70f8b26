"""What the types of a config cannot say: names, shares, and what goes together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rlhf.errors import UserError, unknown_name

if TYPE_CHECKING:
    from rlhf.config import ProjectConfig, RewardConfig


def check(project: ProjectConfig) -> None:
    """Hold a project's names, shares and the model's origin.

    Raises:
        UserError: One is wrong.
    """
    where = project.path
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", project.name):
        raise UserError(f"{where}: name: {project.name!r} must be letters, digits, '.', '_' or '-' (it names a folder)")
    if not 0 <= project.holdout < 1:
        raise UserError(f"{where}: data: holdout must be at least 0 and below 1, not {project.holdout}")
    if (project.model.name_or_path is None) == (project.model.scratch is None):
        raise UserError(f"{where}: model: give one of name_or_path and scratch")
    for name, reward in project.rewards.items():
        if problem := _reward_problem(reward):
            raise UserError(f"{where}: rewards.{name}: {problem}")
        if name in project.stages:
            raise UserError(f"{where}: rewards.{name}: {name!r} is a stage; give the judge another name")
    for name, stage in project.stages.items():
        if stage.model is not None and stage.model.name_or_path is None:
            raise UserError(f"{where}: stages.{name}.model: name_or_path is missing")
        if stage.parent not in (None, "base") and stage.parent not in project.stages:
            hint = unknown_name(str(stage.parent), {"base", *project.stages} - {name})
            raise UserError(f"{where}: stages.{name}.parent: no stage {stage.parent!r}; {hint}")
    for key in ("prompts", "samples", "max_new_tokens", "batch_size"):
        if (value := getattr(project.evaluate, key)) < 1:
            raise UserError(f"{where}: evaluate.{key} must be at least 1, not {value}")
    for key, number in (("evaluate.temperature", project.evaluate.temperature), ("seed", project.seed)):
        if not number >= 0:
            raise UserError(f"{where}: {key} must be at least 0, not {number}")


def _reward_problem(reward: RewardConfig) -> str | None:
    """What is wrong with the settings of a reward, if anything."""
    if (reward.function is None) == (reward.model is None):
        return "give one of function and model"
    if reward.arguments and reward.function is None:
        return "arguments belong to a function, not to a model"
    if reward.label is not None and reward.model is None:
        return "label belongs to a model, not to a function"
    if isinstance(reward.model, list) and len(reward.model) < 2:
        return "an ensemble needs at least two models"
    if reward.std_weight is not None and not isinstance(reward.model, list):
        return "std_weight belongs to an ensemble: give a list of models"
    if reward.std_weight is not None and not 0 <= reward.std_weight < float("inf"):
        return f"std_weight must be finite and at least 0, not {reward.std_weight}"
    return None
