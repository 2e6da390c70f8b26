"""What a stage is, which there are, and how those of a project depend on each other.

A stage is a function `run(context: StageContext) -> Metrics` from directories and a config to a directory. Each is one
file of `rlhf/stages/`, with a `STAGE`; adding one is adding a file. These files import nothing heavy but inside their
functions, so that whoever only asks which stages there are stays free of torch.

A stage of a project goes by its name: `dpo`, and `dpo@1`, `dpo@2` … where it is repeated with other seeds (`StageId`).
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.config.project import ModelConfig, ProjectConfig, RewardConfig, StageConfig, StageId
from rlhf.config.sets import SUPPLIERS, DatasetConfig, SourceConfig
from rlhf.errors import RowsToCome, UserError

if TYPE_CHECKING:
    from rlhf.workload import Circumstances, Workload

Metrics = dict[str, Any]
Leaves = Literal["base", "policy", "scorer", "verdict", "rows", "comparison"]
"""What a stage leaves: a base model that others start from; a policy, which writes completions (or, of an encoder, a
classifier); a scorer, which is a reward model; a verdict on what other stages are about to maximise; rows, which other
stages train on; a comparison of policies."""

BASE = "base"
"""The base model's name among policies and parents; that of a stage, too, where it is made from `scratch:`."""
CANDIDATES = "candidates"
"""Folder of a stage with the weights of its checkpoints that a judge chooses among; deleted once the stage is done."""
TRAINING_ARGUMENTS = ("transformers.training_args:TrainingArguments",)
"""What every trainer's config class derives from."""
TRL_CONFIG = (*TRAINING_ARGUMENTS, "trl.trainer.base_config:_BaseConfig")
"""What the config class of a trainer of TRL's derives from."""


ROWS_FILES = {
    "preferences": ("pairs.jsonl", "preference"),
    "demonstrations": ("demonstrations.jsonl", "prompt_completion"),
}
"""Set of `data:` -> file and format in which a stage leaves rows of it."""


@dataclass(frozen=True)
class Stage:
    """A stage, as its file declares it."""

    name: str
    order: int
    """Stages run in this order."""
    label: str
    """How tables and the report name it: `SFT`."""
    leaves: Leaves
    run: Callable[[StageContext], Metrics]
    """Writes the artefact and returns its metrics."""
    prepare: Callable[[StageContext], Any] | None = None
    """Reads, checks and tokenises its data, and trains nothing."""
    dry_run: Callable[[StageContext, Any], None] | None = None
    """Takes what `prepare` returned too, and builds the trainer without training."""
    workload: Callable[[ProjectConfig, str, Circumstances], Workload] | None = None
    """The models that it holds and the passes that they compute, of a project and the stage's name there."""
    method: str = ""
    """What it does, as a model card says it."""

    data: str | None = None
    """The set of `data:` it trains on, or replies to."""
    rows_of: tuple[str, ...] = ()
    """Stages on whose rows it trains instead of the set, where the project has them and their rows are of that set."""
    leaves_rows: Callable[[ProjectConfig, str], str] | None = None
    """Of a stage that leaves rows: the set of `data:` they are of, of a project and the stage's name there."""
    reads: tuple[str, ...] = ()
    """Sets it reads without training on them, to look at policies."""
    ignores: tuple[str, ...] = ()
    """Fields of `evaluate:` that it does not use, if it looks at policies."""
    own_half: bool = False
    """Whether it trains on one half of its set, and all other stages of that set on the other."""
    first_round: bool = False
    """Whether later rounds leave it out, unless `rounds.stages` names it."""
    follows: tuple[str, ...] = ()
    """Stages it starts from, the first that the project has; none of them means the base model."""
    uses: tuple[str, ...] = ()
    """Further stages whose artefacts it reads where the project has them."""
    compares: bool = False
    """Whether it reads every policy, repetitions included, and every scorer of the project."""
    gates: bool = False
    """Whether stages that maximise reward models may run only if these pass it (`guarded_by`)."""
    rewards: Callable[[ProjectConfig, str], dict[str, float]] | None = None
    """The rewards that it reads, with weights, of a project and the stage's name there."""

    trainer: tuple[str, ...] = ()
    """`module:Class` of its trainer's config, base classes first; it stands under `stages:` if it has one."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of these fields that differ from `rlhf.training.defaults`."""
    intervals: Mapping[str, str] = field(default_factory=dict)
    """Numbers that fields of its own take, as `rlhf.config.ranges` writes them."""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Words that fields of its own take."""
    launch_problem: Callable[[ProjectConfig, str, int, Mapping[str, str]], str | None] | None = None
    """Why it cannot run on so many processes, by what accelerate is asked for in its variables; None where it can."""
    shows: Mapping[str, str] = field(default_factory=dict)
    """What it logs of which a watching person is told, the most important first, and how that is called."""
    checkpoint_judge: bool = False
    """Whether a judge can score its checkpoints."""

    absent: Callable[[ProjectConfig], str | None] | None = None
    """Of a stage that does not stand under `stages:`, why a project does not have it; None where it does."""
    check: Callable[[ProjectConfig, str], str | None] | None = None
    """What is wrong with a project that has this stage, beginning with the key, as far as its YAML shows."""
    identity: Callable[[ProjectConfig, str], dict[str, Any]] | None = None
    """What decides its result besides settings, data, rewards and parents."""

    @property
    def online(self) -> bool:
        """Whether it has its policy write, and maximises rewards of what it wrote."""
        return self.rewards is not None and self.data is not None

    @property
    def can_generate(self) -> bool:
        """Whether its artefact writes completions."""
        return self.leaves in ("policy", "base")

    @property
    def leaves_model(self) -> bool:
        """Whether its artefact is a model."""
        return self.leaves in ("policy", "scorer", "base")


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
    """Whether a name is that of a stage, or of its repetition with another seed, such as `dpo@2`."""
    try:
        return StageId.parse(name).kind in stages()
    except ValueError:
        return False


def kind_of(name: str) -> str:
    """The stage that this name repeats with another seed; other names are returned as they are."""
    return name.partition("@")[0]


def own_base(name: str) -> str:
    """What the model of its own that a stage starts from is called among policies."""
    return f"{kind_of(name)} {BASE}"


def is_base(policy: str) -> bool:
    """Whether a policy is a base model, the project's or a stage's own, and no stage."""
    return policy == BASE or policy.endswith(f" {BASE}")


def scorers() -> list[str]:
    """The stages whose artefact is a reward model; their judges bear their names."""
    return [name for name, stage in stages().items() if stage.leaves == "scorer"]


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
    def stage(self) -> Stage:
        """Which stage it is, whatever the repetition."""
        return stage_of(self.name)

    @property
    def settings(self) -> StageConfig:
        """What the project sets for it."""
        return self.project.stage(self.name)

    @property
    def data_project(self) -> ProjectConfig:
        """The project with the set that the stage trains on: rows that another stage left stand in place of its own.

        Before those rows exist, the project's own set stands for them.

        Raises:
            RowsToCome: There is no such set.
        """
        rows, role = rows_from(self.project, self.name), self.stage.data
        if rows is None or role is None:
            return self.project
        if rows not in self.parents:
            if self.project.data.supplier(role) is None:
                raise RowsToCome
            return self.project
        leaves_rows = stage_of(rows).leaves_rows
        assert leaves_rows is not None
        left = leaves_rows(self.project, rows)
        name, layout = ROWS_FILES[left]
        source = SourceConfig(source=str(self.parents[rows] / name), format=layout, train_all=True)
        sets: dict[str, Any] = {role: None, left: DatasetConfig((source,), self.project.holdout)}
        return replace(self.project, data=replace(self.project.data, **sets))

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
    known = [StageId.parse(name) for name in names if is_stage(name)]
    return [str(stage) for stage in sorted(known, key=lambda stage: (stages()[stage.kind].order, stage.repetition))]


def planned(project: ProjectConfig) -> list[str]:
    """The stages of a project in the order they run, those included that do not stand under `stages:`."""
    _check_parents(project)
    unnamed = [name for name, stage in stages().items() if stage.absent is not None and stage.absent(project) is None]
    names = in_order([*project.stage_names, *unnamed])
    return sorted(names, key=lambda name: order_of(project, name))


def order_of(project: ProjectConfig, name: str) -> int:
    """The place of a stage among those of a project: a gate stands before all that it guards."""
    order = stage_of(name).order
    return min([order, *(stage_of(guarded).order - 1 for guarded in guarded_by(project, name))])


def _check_parents(project: ProjectConfig) -> None:
    """Check that no stage starts from itself by way of others.

    Raises:
        UserError: One does.
    """
    for name in project.stages:
        chain = [name]
        while (parent := parent_of(project, chain[-1])) and project.has_stage(parent) and parent not in chain:
            chain.append(parent)
        if parent in chain:
            circle = " from ".join([*chain[chain.index(parent) :], parent])
            key = f"stages.{kind_of(parent)}.parent"
            raise UserError(f"{project.path}: {key}: a circle: {circle}; let one of them start from {BASE}")


def parent_of(project: ProjectConfig, name: str) -> str | None:
    """The stage whose model this one starts from, or None for the base model (or a model of its own)."""
    name = next(iter(guarded_by(project, name)), name)
    base = BASE if project.model.scratch and name != BASE else None
    if project.has_stage(name):
        config = project.stage(name)
        if config.model is not None:
            return None
        if config.parent is not None:
            return base if config.parent == BASE else config.parent
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
        if not project.has_stage(parent):
            break
    return line[1:]


def base_of(project: ProjectConfig, name: str) -> ModelConfig:
    """The base model that a stage's model goes back to, with the stage's own adapter."""
    first = [name, *(ancestor for ancestor in ancestors_of(project, name) if project.has_stage(ancestor))][-1]
    origin = project.stage_model(first) if project.has_stage(first) else project.model
    adapter = project.stage_model(name).adapter if project.has_stage(name) else None
    return replace(origin, adapter=adapter)


def parents_of(project: ProjectConfig, name: str) -> list[str]:
    """Every stage whose artefact this one reads."""
    stage, first = stage_of(name), parent_of(project, name)
    uses = {*(filter(is_stage, gated_models(project, name)) if stage.gates else stage.uses), rows_from(project, name)}
    used = [other for other in planned(project) if other in uses or (stage.compares and _compared(other))]
    judge = project.stage(name).checkpoint_judge if project.has_stage(name) else None
    judges = [judge] if judge is not None and judge in project.stages else []
    return list(dict.fromkeys([*([first] if first else []), *used, *judges]))


def _compared(name: str) -> bool:
    """Whether a stage takes part in the comparison: every policy, and of each scorer the first."""
    leaves = stage_of(name).leaves
    return leaves == "policy" or (leaves == "scorer" and name == kind_of(name))


def rewards_of(project: ProjectConfig, name: str) -> dict[str, float]:
    """The rewards that a stage reads, with weights: a scorer of the run by its stage's name, or one of `rewards:`."""
    if stage_of(name).gates:
        return {
            reward: weight
            for guarded in guarded_by(project, name)
            for reward, weight in rewards_of(project, guarded).items()
        }
    rewards = stage_of(name).rewards
    return {} if rewards is None else rewards(project, name)


def rows_from(project: ProjectConfig, name: str) -> str | None:
    """The stage on whose rows a stage trains instead of those of the project's set."""
    stage = stage_of(name)
    fitting = SUPPLIERS.get(stage.data or "", (stage.data,))
    for other in stage.rows_of:
        leaves_rows = stage_of(other).leaves_rows
        if other in project.stages and leaves_rows is not None and leaves_rows(project, other) in fitting:
            return other
    return None


def later_stages(project: ProjectConfig) -> list[str]:
    """The stages under `stages:` that the rounds after the first have."""
    named = project.rounds.stages
    return [name for name in project.stages if (name in named if named else not stage_of(name).first_round)]


def policies_of(project: ProjectConfig) -> list[str]:
    """The stages whose artefacts are policies, in order."""
    return [name for name in planned(project) if stage_of(name).leaves == "policy"]


def guarded_by(project: ProjectConfig, gate: str) -> list[str]:
    """The stages that may run only if a gate is passed, in order: those that maximise reward models."""
    if not stage_of(gate).gates or project.data.preferences is None:
        return []
    return [name for name, stage in stages().items() if name in project.stages and _learned(project, name)]


def gated_models(project: ProjectConfig, gate: str) -> list[str]:
    """The reward models that a gate judges on held-out pairs: those that were learned, of what its stages maximise.

    A function says what it measures; a project without preferences has no pairs to judge a model by.
    """
    return list(dict.fromkeys(model for name in guarded_by(project, gate) for model in _learned(project, name)))


def _learned(project: ProjectConfig, name: str) -> list[str]:
    """The reward models that a stage maximises: stages that train one first, then those of `rewards:`."""
    stage = stage_of(name)
    if not stage.online or not isinstance(weights := rewards_of(project, name), dict):
        return []
    learned = [other for other in stage.uses if other in project.stages and stage_of(other).leaves == "scorer"]
    learned += [reward for reward, config in project.rewards.items() if config.models]
    return [reward for reward in learned if reward in weights]


def ungated_models(project: ProjectConfig, name: str) -> list[str]:
    """The reward models that a stage maximises without a pair to judge them by."""
    if project.data.preferences is not None or not stage_of(name).online:
        return []
    return [reward for reward in rewards_of(project, name) if project.rewards.get(reward, RewardConfig()).models]


def gates_of(project: ProjectConfig, name: str) -> list[str]:
    """The stages that must have passed a stage before it runs."""
    return [gate for gate in planned(project) if kind_of(name) in guarded_by(project, gate)]
