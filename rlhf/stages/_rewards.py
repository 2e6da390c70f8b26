"""The rewards of stages that maximise some: which they are, and whether they are there."""

from __future__ import annotations

from collections.abc import Iterable

from rlhf.config.project import ModelConfig, ProjectConfig
from rlhf.errors import UserError
from rlhf.workflow import base_of, parent_of, rewards_of, scorers
from rlhf.workload import REWARD, Held


def rewards(project: ProjectConfig, name: str) -> dict[str, float]:
    """What a stage maximises, with weights: those that its `rewards:` names.

    Without that the run's reward model alone, since what stands beside it measures, or all there are where there is no
    such model.
    """
    settings = project.stage(name)
    if named := settings.trainer.get("rewards"):
        return named
    if "reward" in project.stages:
        return {"reward": 1.0}
    return {reward: 1.0 for reward in project.rewards if reward != settings.checkpoint_judge}


def check(project: ProjectConfig, name: str) -> str | None:
    """A judge that compares cannot be maximised: it gives no completion a score of its own."""
    for reward in rewards(project, name):
        if reward in project.rewards and project.rewards[reward].endpoint is not None:
            return f"stages.{name}.rewards: {reward!r} compares two replies and scores none: name functions or models"
    return None


def check_rewards(project: ProjectConfig, stage: str) -> None:
    """Check, before anything trains, that the rewards are there; the run's own model may still be to come.

    Raises:
        UserError: One is not, or has no weight.
    """
    from rlhf.rewards.load import OWN_REWARD, load_rewards

    weights = rewards_of(project, stage)
    if not weights:
        raise UserError(
            f"{project.path}: stages.{stage} has nothing to maximise: add a reward stage, or a function to rewards:"
        )
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            raise UserError(f"stages.{stage}.rewards.{name}: expected a weight, not {weight!r}")
    if OWN_REWARD in weights and OWN_REWARD not in project.stages:
        raise UserError(f"stages.{stage}.rewards: there is no {OWN_REWARD!r} stage in {project.path}")
    load_rewards(project, names=[name for name in weights if name != OWN_REWARD])


def reward_models(
    project: ProjectConfig, name: str, names: Iterable[str], base: ModelConfig | None = None
) -> list[Held]:
    """The models that score for a stage: those of the run, and those under `rewards:`.

    Args:
        project: The project.
        name: The stage.
        names: Of the rewards.
        base: The stage's own model with its adapter. A reward model of the run that is an adapter on the same base,
            trained from the same stage, stands on its weights; None where each is loaded by itself.
    """
    models = []
    for reward in names:
        if reward in project.rewards:
            models += [
                Held(f"{REWARD} {reward}", ModelConfig(name_or_path=model, adapter=None), scores=True)
                for model in project.rewards[reward].models
            ]
        elif reward in scorers() and project.has_stage(reward):
            own = base_of(project, reward)
            shares = (
                base is not None
                and None not in (base.adapter, own.adapter)
                and own.name_or_path == base.name_or_path
                and parent_of(project, reward) == parent_of(project, name)
            )
            models.append(Held(REWARD, None if shares else own, own.adapter if shares else None, scores=True))
    return models
