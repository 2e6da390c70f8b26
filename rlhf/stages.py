"""The stages there are: what each reads, starts from and runs. Names only, so that nothing heavy is imported.

A stage is a function `run(context: StageContext) -> Metrics` from directories and a config to a directory. Adding one
is writing that function and adding its line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import ProjectConfig

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A stage, by name."""

    name: str
    run: str
    """`module:function` that takes a StageContext, writes the artefact and returns its metrics."""
    data: str | None = None
    """The set of `data:` it trains on."""
    prepare: str | None = None
    """`module:function` that reads, checks and tokenises that set, and trains nothing."""
    follows: tuple[str, ...] = ()
    """Stages it starts from, the first that the project has; none of them means the base model."""
    uses: tuple[str, ...] = ()
    """Further stages whose artefacts it reads where the project has them."""
    policy: bool = True
    """Whether its artefact is a language model that replies."""


STAGES = {
    stage.name: stage
    for stage in (
        Stage("base", "rlhf.models.scratch:build"),
        Stage("sft", "rlhf.trainers.sft:train", "demonstrations", "rlhf.trainers.sft:prepare"),
        Stage(
            "reward",
            "rlhf.trainers.reward:train",
            "preferences",
            "rlhf.trainers.reward:prepare",
            ("sft",),
            policy=False,
        ),
        Stage("dpo", "rlhf.trainers.dpo:train", "preferences", "rlhf.trainers.dpo:prepare", ("sft",)),
        Stage(
            "ppo", "rlhf.trainers.ppo_stage:train", "rollouts", "rlhf.trainers.ppo_stage:prepare", ("sft",), ("reward",)
        ),
        Stage(
            "evaluate",
            "rlhf.evaluation.evaluate:evaluate",
            prepare="rlhf.evaluation.evaluate:prepare",
            uses=("sft", "reward", "dpo", "ppo"),
            policy=False,
        ),
    )
}
"""All stages, in the order they run."""


@dataclass(frozen=True)
class StageContext:
    """What a stage's function is given."""

    project: ProjectConfig
    name: str
    directory: Path
    """Where the stage writes; it is moved to its final place once the stage is done."""
    parents: dict[str, Path]
    """Finished stages it reads, by name."""

    @property
    def parent(self) -> Path | None:
        """The folder of the stage it starts from; None for the base model as configured.

        Data is prepared before that stage exists: there the base model stands for it, whose tokenizer it will have.
        """
        name = parent_of(self.project, self.name)
        return self.parents.get(name) if name else None


def planned(project: ProjectConfig) -> list[str]:
    """The stages of a project in the order they run, `base` (from scratch) and `evaluate` included where they apply."""
    wanted = {*project.stages, *(["base"] if project.model.scratch else [])}
    if project.evaluate.enabled and any(STAGES[name].policy for name in project.stages):
        wanted.add("evaluate")
    return [name for name in STAGES if name in wanted]


def parent_of(project: ProjectConfig, name: str) -> str | None:
    """The stage whose model this one starts from, or None for the base model (or a model of its own)."""
    config = project.stages.get(name)
    base = "base" if project.model.scratch and name != "base" else None
    if config is not None:
        if config.model is not None:
            return None
        if config.parent is not None:
            return base if config.parent == "base" else config.parent
    return next((parent for parent in STAGES[name].follows if parent in project.stages), base)


def parents_of(project: ProjectConfig, name: str) -> list[str]:
    """Every stage whose artefact this one reads."""
    first = parent_of(project, name)
    names = [*([first] if first else []), *(other for other in STAGES[name].uses if other in project.stages)]
    return list(dict.fromkeys(names))


def rewards_of(project: ProjectConfig, name: str) -> dict[str, float]:
    """The rewards that a stage reads, with weights: `reward` is the run's own model, the others stand under `rewards:`.

    Online training reads those that its `rewards:` names; without that the run's reward model alone, since what stands
    beside it measures, or all there are where there is no such model. Evaluation reads all.
    """
    if name == "evaluate":
        return dict.fromkeys(project.rewards, 1.0)
    if name != "ppo":
        return {}
    named = project.stages[name].trainer.get("rewards")
    return named or ({"reward": 1.0} if "reward" in project.stages else dict.fromkeys(project.rewards, 1.0))


def policies_of(project: ProjectConfig) -> list[str]:
    """The stages whose artefacts reply, in order."""
    return [name for name in planned(project) if STAGES[name].policy and name != "base"]
