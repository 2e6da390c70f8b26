"""What a stage is, which there are, and how those of a project hang together.

A stage is a function `run(context: StageContext) -> Metrics` from directories and a config to a directory. Each is one
file of `rlhf/stages/`, with a `STAGE`; adding one is adding a file. These files import nothing heavy but inside their
functions, so that whoever only asks which stages there are stays free of torch.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A stage, as its file declares it."""

    name: str
    order: int
    """Stages run in this order."""
    run: Callable[[StageContext], Metrics]
    """Writes the artefact and returns its metrics."""
    prepare: Callable[[StageContext], Any] | None = None
    """Reads, checks and tokenises its data, and trains nothing."""
    trial: Callable[[StageContext, Any], None] | None = None
    """Takes what `prepare` returned too, and makes the trainer for nothing."""
    data: str | None = None
    """The set of `data:` it trains on."""
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


@functools.cache
def stages() -> dict[str, Stage]:
    """All stages by name, in the order they run."""
    package = importlib.import_module("rlhf.stages")  # by name: the stage files import this module
    names = (info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_"))
    declared = [importlib.import_module(f"rlhf.stages.{name}").STAGE for name in names]
    return {stage.name: stage for stage in sorted(declared, key=lambda stage: stage.order)}


def stage_of(name: str) -> Stage:
    """The stage of a name, which may be that of a repetition.

    Raises:
        KeyError: There is none.
    """
    if not is_stage(name):
        raise KeyError(name)
    return stages()[kind_of(name)]


def is_stage(name: str) -> bool:
    """Whether a name is that of a stage, or of its repetition from another seed, such as `dpo@2`."""
    kind, at, number = name.partition("@")
    return kind in stages() and (number.isdigit() or not at)


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
    order = list(stages())
    known = (name for name in names if is_stage(name))
    return sorted(known, key=lambda name: (order.index(kind_of(name)), int(name.partition("@")[2] or 0)))


def planned(project: ProjectConfig) -> list[str]:
    """The stages of a project in the order they run, `base` (from scratch) and `evaluate` included where they apply."""
    wanted = {*project.stages, *(["base"] if project.model.scratch else [])}
    wanted |= {name for name, stage in stages().items() if stage.guards in project.stages and judged(project, name)}
    if project.evaluate.enabled and any(stage_of(name).policy for name in project.stages):
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
    name = stage_of(name).guards or name
    config = project.stages.get(name)
    base = "base" if project.model.scratch and name != "base" else None
    if config is not None:
        if config.model is not None:
            return None
        if config.parent is not None:
            return base if config.parent == "base" else config.parent
    return next((parent for parent in stage_of(name).follows if parent in project.stages), base)


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
    first, uses = parent_of(project, name), stage_of(name).uses
    if stage_of(name).guards:
        uses = tuple(other for other in judged(project, name) if is_stage(other))
    used = [other for other in planned(project) if other in uses or (name == "evaluate" and _again(other) in uses)]
    config = project.stages.get(name)
    gold = [config.gold] if config is not None and config.gold in project.stages else []
    return list(dict.fromkeys([*([first] if first else []), *used, *gold]))


def _again(name: str) -> str | None:
    """The policy of which this is a repetition, which is compared like it."""
    return kind_of(name) if stage_of(name).policy else None


def rewards_of(project: ProjectConfig, name: str) -> dict[str, float]:
    """The rewards that a stage reads, with weights: `reward` is the run's own model, the others stand under `rewards:`.

    Online training reads those that its `rewards:` names; without that the run's reward model alone, since what stands
    beside it measures, or all there are where there is no such model. Evaluation reads all.
    """
    name = stage_of(name).guards or name
    if name == "evaluate":
        return dict.fromkeys(project.rewards, 1.0)
    if kind_of(name) != "ppo":
        return {}
    named = project.stages[name].trainer.get("rewards")
    others = [one for one in project.rewards if one != project.stages[name].gold]
    return named or ({"reward": 1.0} if "reward" in project.stages else dict.fromkeys(others, 1.0))


def policies_of(project: ProjectConfig) -> list[str]:
    """The stages whose artefacts reply, in order."""
    return [name for name in planned(project) if stage_of(name).policy and name != "base"]


def judged(project: ProjectConfig, name: str) -> list[str]:
    """The reward models a guard holds against held-out pairs: those that were learned, of what its stage maximises.

    A function says what it measures; a project without preferences has no pairs to hold a model against.
    """
    if project.data.preferences is None or stage_of(name).guards not in project.stages:
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
    if "gold" not in project.stages or stage_of(name).data != "preferences":
        return None
    return int(kind_of(name) == "gold")


def guards_of(project: ProjectConfig, name: str) -> list[str]:
    """The stages that must have passed a stage before it runs."""
    return [one for one in planned(project) if stage_of(one).guards == kind_of(name)]
