"""Loads rewards by name, as a project describes them: judges in evaluation, rewards in online training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rlhf.config.project import ProjectConfig, RewardConfig
from rlhf.errors import UserError, unknown_name
from rlhf.rewards import RewardFunction
from rlhf.rewards.endpoint import EndpointJudge, load_judge
from rlhf.rewards.ensemble import Ensemble
from rlhf.rewards.function import load_function
from rlhf.rewards.model import RewardModel
from rlhf.workflow import scorers

OWN_REWARD = "reward"
"""Name of the run's own reward model: that of the stage that trains it."""

ANSWERS = "judges"
"""Folder of a run in which judges that compare keep their answers."""


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
    project: ProjectConfig, parents: Mapping[str, Path] | None = None, names: Iterable[str] | None = None
) -> dict[str, RewardFunction]:
    """The run's own reward models, by their stages' names, and everything under `rewards:` that scores completions.

    Args:
        project: The project.
        parents: Finished stages by name, of which those that trained a reward model are used.
        names: The rewards wanted, in this order; None for all.

    Raises:
        UserError: A name is unknown, or a reward cannot be loaded.
    """
    scoring = [name for name, reward in project.rewards.items() if reward.endpoint is None]
    own = {name: folder for name, folder in (parents or {}).items() if name in scorers()}
    known = [*own, *scoring]
    wanted = known if names is None else list(names)
    for name in wanted:
        if name not in known:
            raise UserError(f"{project.path}: rewards: there is no {name!r}; {unknown_name(name, known)}")
    return {
        name: RewardModel(own[name]) if name in own else load_reward(project.rewards[name], project) for name in wanted
    }


def load_judges(project: ProjectConfig) -> dict[str, EndpointJudge]:
    """The judges under `rewards:` that compare two completions; their answers are kept in the run's folder.

    Raises:
        UserError: A judge's settings are incomplete, or its key is not set.
    """
    folder = project.run_dir / ANSWERS
    return {
        name: load_judge(name, reward, folder / name)
        for name, reward in project.rewards.items()
        if reward.endpoint is not None
    }
