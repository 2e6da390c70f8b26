"""The stages there are: what each reads, starts from and runs. Names only, so that nothing heavy is imported.

A stage is a function `run(context: StageContext) -> Metrics` from directories and a config to a directory. Adding one
is writing that function and adding its line here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError

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
    trial: str | None = None
    """`module:function` that takes a StageContext and what `prepare` returned, and makes the trainer for nothing."""
    follows: tuple[str, ...] = ()
    """Stages it starts from, the first that the project has; none of them means the base model."""
    uses: tuple[str, ...] = ()
    """Further stages whose artefacts it reads where the project has them."""
    policy: bool = True
    """Whether its artefact is a language model that replies."""
    reads: tuple[str, ...] = ()
    """Sets it reads without training on them."""
    guards: str | None = None
    """The stage that may run only if this one passes it: it starts from the same parent and reads the same rewards."""


class _Stages(dict[str, Stage]):
    """Stages by name; `NAME@2` is NAME trained once more, from another seed."""

    def __missing__(self, name: str) -> Stage:
        if name not in self:
            raise KeyError(name)
        return replace(self[kind_of(name)], name=name)

    def __contains__(self, name: object) -> bool:
        kind, at, number = str(name).partition("@")
        return super().__contains__(kind) and (number.isdigit() or not at)


def kind_of(name: str) -> str:
    """The stage of which this is a repetition, or itself."""
    return name.partition("@")[0]


def own_base(name: str) -> str:
    """What the model of its own that a stage starts from is called among policies."""
    return f"{kind_of(name)} base"


def is_base(policy: str) -> bool:
    """Whether a policy is a base model, the project's or a stage's own, and no stage."""
    return policy == "base" or policy.endswith(" base")


LEARNED = ("reward", "gold")
"""Stages whose artefact scores replies; their judges bear their names."""

STAGES = _Stages(
    (stage.name, stage)
    for stage in (
        Stage("base", "rlhf.models.scratch:build"),
        Stage(
            "sft",
            "rlhf.trl_trainers.sft:train",
            "demonstrations",
            "rlhf.trl_trainers.sft:prepare",
            "rlhf.trl_trainers.sft:trial",
        ),
        Stage(
            "reward",
            "rlhf.trl_trainers.reward:train",
            "preferences",
            "rlhf.trl_trainers.reward:prepare",
            "rlhf.trl_trainers.reward:trial",
            ("sft",),
            policy=False,
        ),
        Stage(
            "gold",
            "rlhf.trl_trainers.reward:train",
            "preferences",
            "rlhf.trl_trainers.reward:prepare",
            "rlhf.trl_trainers.reward:trial",
            ("sft",),
            policy=False,
        ),
        Stage(
            "dpo",
            "rlhf.trl_trainers.dpo:train",
            "preferences",
            "rlhf.trl_trainers.dpo:prepare",
            "rlhf.trl_trainers.dpo:trial",
            ("sft",),
        ),
        Stage(
            "gate",
            "rlhf.evaluation.gate:gate",
            prepare="rlhf.evaluation.gate:prepare",
            policy=False,
            reads=("preferences", "prompts"),
            guards="ppo",
        ),
        Stage(
            "ppo",
            "rlhf.ppo.stage:train",
            "rollouts",
            "rlhf.ppo.stage:prepare",
            "rlhf.ppo.stage:trial",
            ("sft",),
            ("reward",),
        ),
        Stage(
            "evaluate",
            "rlhf.evaluation.evaluate:evaluate",
            prepare="rlhf.evaluation.evaluate:prepare",
            uses=("sft", "reward", "gold", "dpo", "ppo"),
            policy=False,
            reads=("prompts",),
        ),
    )
)
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
        """The folder of the stage it starts from; None for a base model as configured.

        Data is prepared before that stage exists: there its nearest ancestor that does stands for it, whose tokenizer
        it will have, or the base model.
        """
        ancestors = ancestors_of(self.project, self.name)
        return next((self.parents[name] for name in ancestors if name in self.parents), None)


def in_order(names: Iterable[str]) -> list[str]:
    """Stages in the order they run, repetitions after the first; what is no stage is left out."""
    order = list(STAGES)
    known = (name for name in names if name in STAGES)
    return sorted(known, key=lambda name: (order.index(kind_of(name)), int(name.partition("@")[2] or 0)))


def planned(project: ProjectConfig) -> list[str]:
    """The stages of a project in the order they run, `base` (from scratch) and `evaluate` included where they apply."""
    wanted = {*project.stages, *(["base"] if project.model.scratch else [])}
    wanted |= {name for name, stage in STAGES.items() if stage.guards in project.stages and judged(project, name)}
    if project.evaluate.enabled and any(STAGES[name].policy for name in project.stages):
        wanted.add("evaluate")
    _check_parents(project)
    return in_order(wanted)


def _check_parents(project: ProjectConfig) -> None:
    """Hold that no stage starts from itself by way of others.

    Raises:
        UserError: One does.
    """
    for name in project.stages:
        chain = [name]
        while (parent := parent_of(project, chain[-1])) in project.stages and parent not in chain:
            chain.append(str(parent))
        if parent in chain:
            circle = " from ".join([*chain[chain.index(str(parent)) :], str(parent)])
            raise UserError(
                f"{project.path}: stages.{parent}.parent: a circle: {circle}; let one of them start from base"
            )


def parent_of(project: ProjectConfig, name: str) -> str | None:
    """The stage whose model this one starts from, or None for the base model (or a model of its own)."""
    name = STAGES[name].guards or name
    config = project.stages.get(name)
    base = "base" if project.model.scratch and name != "base" else None
    if config is not None:
        if config.model is not None:
            return None
        if config.parent is not None:
            return base if config.parent == "base" else config.parent
    return next((parent for parent in STAGES[name].follows if parent in project.stages), base)


def ancestors_of(project: ProjectConfig, name: str) -> list[str]:
    """The stages that the model of this one goes back to, nearest first.

    Raises:
        UserError: A stage goes back to itself.
    """
    line = [name]
    while (parent := parent_of(project, line[-1])) is not None:
        line.append(parent)
        if parent in line[:-1]:
            raise UserError(f"{project.path}: stages: {' starts from '.join(line)}; change one `parent:`")
        if parent not in project.stages:
            break
    return line[1:]


def parents_of(project: ProjectConfig, name: str) -> list[str]:
    """Every stage whose artefact this one reads."""
    first, uses = parent_of(project, name), STAGES[name].uses
    if STAGES[name].guards:
        uses = tuple(other for other in judged(project, name) if other in STAGES)
    used = [other for other in planned(project) if other in uses or (name == "evaluate" and _again(other) in uses)]
    config = project.stages.get(name)
    gold = [config.gold] if config is not None and config.gold in project.stages else []
    return list(dict.fromkeys([*([first] if first else []), *used, *gold]))


def _again(name: str) -> str | None:
    """The policy of which this is a repetition, which is compared like it."""
    return kind_of(name) if STAGES[name].policy else None


def rewards_of(project: ProjectConfig, name: str) -> dict[str, float]:
    """The rewards that a stage reads, with weights: `reward` is the run's own model, the others stand under `rewards:`.

    Online training reads those that its `rewards:` names; without that the run's reward model alone, since what stands
    beside it measures, or all there are where there is no such model. Evaluation reads all.
    """
    name = STAGES[name].guards or name
    if name == "evaluate":
        return dict.fromkeys(project.rewards, 1.0)
    if kind_of(name) != "ppo":
        return {}
    named = project.stages[name].trainer.get("rewards")
    others = [one for one in project.rewards if one != project.stages[name].gold]
    return named or ({"reward": 1.0} if "reward" in project.stages else dict.fromkeys(others, 1.0))


def policies_of(project: ProjectConfig) -> list[str]:
    """The stages whose artefacts reply, in order."""
    return [name for name in planned(project) if STAGES[name].policy and name != "base"]


def judged(project: ProjectConfig, name: str) -> list[str]:
    """The reward models a guard holds against held-out pairs: those that were learned, of what its stage maximises.

    A function says what it measures; a project without preferences has no pairs to hold a model against.
    """
    if project.data.preferences is None or STAGES[name].guards not in project.stages:
        return []
    named = rewards_of(project, name)
    learned = ["reward"] if "reward" in project.stages else []
    learned += [one for one, reward in project.rewards.items() if reward.models]
    return [one for one in learned if one in named] if isinstance(named, dict) else []


def unguarded(project: ProjectConfig, name: str) -> list[str]:
    """The reward models that a stage maximises without a pair to hold them against."""
    if project.data.preferences is not None or kind_of(name) != "ppo":
        return []
    return [one for one in rewards_of(project, name) if one in project.rewards and project.rewards[one].models]


def half_for(project: ProjectConfig, name: str) -> int | None:
    """The half of the preferences that a stage trains on, where the project keeps the other for a gold judge."""
    if "gold" not in project.stages or STAGES[name].data != "preferences":
        return None
    return int(kind_of(name) == "gold")


def guards_of(project: ProjectConfig, name: str) -> list[str]:
    """The stages that must have passed a stage before it runs."""
    return [one for one in planned(project) if STAGES[one].guards == kind_of(name)]
