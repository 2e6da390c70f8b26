"""Rewards by name, as a project describes them: judges in evaluation, rewards in online training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlhf.config import ProjectConfig, RewardConfig
from rlhf.errors import UserError, unknown_name
from rlhf.rewards import RewardFunction
from rlhf.rewards.ensemble import Ensemble
from rlhf.rewards.function import load_function
from rlhf.rewards.model import RewardModel

OWN = "reward"
"""Name of the run's own reward model: that of the stage that trains it."""


def load_reward(reward: RewardConfig, project: ProjectConfig) -> RewardFunction:
    """A function, a reward model or an ensemble of them.

    Raises:
        UserError: It cannot be loaded, a function does not take these arguments, or a model has no such label.
    """
    if reward.function is not None:
        return load_function(reward.function, project, reward.arguments)
    models = [RewardModel(project.resolve(name), label=reward.label) for name in reward.models]
    if len(models) == 1:
        return models[0]
    return Ensemble(models) if reward.std_weight is None else Ensemble(models, reward.std_weight)


def load_rewards(
    project: ProjectConfig, reward_stage: Path | None = None, names: Iterable[str] | None = None
) -> dict[str, RewardFunction]:
    """The run's own reward model, under the name `reward`, and whatever stands under `rewards:`.

    Args:
        project: The project.
        reward_stage: The finished reward stage's folder, if there is one.
        names: Those wanted, in this order; None for all.

    Raises:
        UserError: A name is unknown, or a reward cannot be loaded.
    """
    known = [*([OWN] if reward_stage is not None else []), *project.rewards]
    wanted = known if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise UserError(f"{project.path}: rewards: there is no {name!r}; {unknown_name(name, known)}")
    return {name: _load(name, project, reward_stage) for name in wanted}


def _load(name: str, project: ProjectConfig, reward_stage: Path | None) -> RewardFunction:
    if name == OWN and reward_stage is not None:
        return RewardModel(reward_stage)
    return load_reward(project.rewards[name], project)
