"""One YAML file is a project: YAML, then overrides, become dataclasses; an unknown key is an error.

Nothing heavy is imported here: the command line and the orchestrator read configs without torch. The fields a stage
takes are those of its trainer's config class; their names are read from the installed package's source (`schema`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rlhf import schema
from rlhf.config_checks import check
from rlhf.errors import UserError, unknown_name
from rlhf.yaml_loader import Loader, parse_value

_STRICT = ConfigDict(extra="forbid")
_UNSAID = {"sources", "dict[str,any]", "dict[str,Any]", "list[str]", "str", "int"}
"""Steps in pydantic's path to an error that are no keys of the YAML."""


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """A model to start from."""

    name_or_path: str | None = None
    """Hub id or local folder."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    scratch: dict[str, Any] | None = None
    """Train from nothing: `architecture`, `tokenizer` (a folder or `{vocab_size: N}`), that config's own fields."""
    tokenizer: str | None = None
    """Tokenizer, where it is not the model's own."""
    adapter: dict[str, Any] | None = dataclasses.field(default_factory=lambda: {"r": 16})
    """Fields of `peft.LoraConfig`; null trains all weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type the weights are loaded in."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`; null lets transformers choose."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    eos_token: str | None = None
    """End-of-sequence token, where the tokenizer names none or the wrong one."""
    pad_token: str | None = None
    """Padding token, where the tokenizer names none or the same as EOS."""


@dataclass(frozen=True, config=_STRICT)
class SourceConfig:
    """Where rows come from."""

    source: str
    """A file (jsonl, json, csv, tsv, parquet; gzip too), a folder of them, or a hub id."""
    format: str | None = None
    """Name of a format of `rlhf.data.formats`; null looks at the columns."""
    weight: float = 1.0
    """How often each training row is used: 2 repeats all, 0.5 keeps half."""
    split: str | None = None
    """Split of a hub dataset (`train` if not named)."""
    streaming: bool = False
    """Read a hub dataset row by row instead of downloading it first."""
    limit: int | None = None
    """Stop after so many rows."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Our column name: the file's column name."""


@dataclass(frozen=True, config=_STRICT)
class DatasetConfig:
    """A dataset: one source or a mixture."""

    sources: tuple[SourceConfig, ...]
    """The sources, each with its weight."""
    holdout: float | None = None
    """Share of prompts kept out of training; the largest of a project holds for all its sets (0.1 if none is given)."""


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """The sets of a project, by what they are for."""

    demonstrations: DatasetConfig | None = None
    """What SFT imitates."""
    preferences: DatasetConfig | None = None
    """What the reward model and DPO learn from."""
    prompts: DatasetConfig | None = None
    """Prompts for evaluation; held-out prompts of the other sets if not given."""
    rollouts: DatasetConfig | None = None
    """Prompts that online training replies to; those of the preferences, else of the demonstrations, if not given."""


@dataclass(frozen=True, config=_STRICT)
class RewardConfig:
    """What "better" means: a judge in evaluation, a reward in online training. One of the two."""

    function: str | None = None
    """`package.module:function` or `path/to/file.py:function`, called as `f(prompts, completions, **columns)`."""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the function, by name; a column of the data does not replace them."""
    model: str | list[str] | None = None
    """Folder or hub id of a sequence classifier of any architecture; a list of them is an ensemble."""
    label: int | str | None = None
    """Number or name of the class whose log odds are the score, where a model has more than one label."""
    std_weight: float | None = None
    """k of an ensemble's score, mean - k * std; null is 1."""

    @property
    def models(self) -> list[str]:
        """The models, of which there are several in an ensemble and none for a function."""
        return self.model if isinstance(self.model, list) else [] if self.model is None else [self.model]


@dataclass(frozen=True, config=_STRICT)
class EvaluateConfig:
    """How policies are compared; `evaluate: false` leaves the comparison out."""

    enabled: bool = True
    """Whether policies are compared at all: a classifier has no replies to judge."""
    prompts: int = 200
    """Most prompts used."""
    samples: int = 4
    """Replies a prompt from each policy."""
    max_new_tokens: int = 128
    """Longest reply, in tokens."""
    temperature: float = 1.0
    """Sampling temperature; 0 is greedy."""
    batch_size: int = 64
    """Replies generated at once."""


@dataclass(frozen=True, config=_STRICT)
class PublishConfig:
    """Where `rlhf publish` pushes to; nothing else ever pushes."""

    to: str | None = None
    """Hub id, `user/name`."""
    merge: bool = False
    """Publish merged weights instead of the adapter."""
    private: bool = True
    """Create the repository as private."""


@dataclass(frozen=True, config=_STRICT)
class StageConfig:
    """One stage of a project: our few fields, and the fields of its trainer's config class."""

    model: ModelConfig | None = None
    """Start from this model instead of the parent stage (an encoder reward model, say)."""
    parent: str | None = None
    """The stage (or `base`) to start from, where it is not the usual one."""
    adapter: dict[str, Any] | Literal["inherit"] | None = "inherit"
    """As `model.adapter`, for this stage alone."""
    fold: bool = True
    """Compute what sequences share once, the head where labels are, rows of like length together; false does not."""
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the trainer's config class."""


@dataclass(frozen=True, config=_STRICT)
class ProjectConfig:
    """A whole project, as one YAML file describes it."""

    name: str
    """Output goes to `output_dir/name`."""
    model: ModelConfig
    """The base model."""
    seed: int = 0
    """Seed of everything random."""
    output_dir: str = "runs"
    """Folder of all runs."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """The datasets."""
    rewards: dict[str, RewardConfig] = dataclasses.field(default_factory=dict)
    """Reward functions by name."""
    stages: dict[str, StageConfig] = dataclasses.field(default_factory=dict)
    """The stages to run."""
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    """How policies are compared."""
    publish: PublishConfig = dataclasses.field(default_factory=PublishConfig)
    """Where to publish, when asked."""
    path: Path = Path("project.yaml")
    """The file this was read from; set by `load_project`."""
    overrides: tuple[str, ...] = ()
    """How it differs from that file; set by `load_project`."""

    @property
    def run_dir(self) -> Path:
        """Folder of this project's artefacts."""
        return Path(self.output_dir) / self.name

    @property
    def holdout(self) -> float:
        """Share of prompts held out of training: one value for all sets, so that no prompt changes sides."""
        sets = (self.data.demonstrations, self.data.preferences, self.data.rollouts)
        given = [one.holdout for one in sets if one is not None and one.holdout is not None]
        return max(given, default=0.1)

    def stage_model(self, stage: str) -> ModelConfig:
        """The model a stage starts from when it starts from no other stage, with the stage's own adapter setting."""
        config = self.stages[stage]
        model = config.model or self.model
        return model if config.adapter == "inherit" else dataclasses.replace(model, adapter=config.adapter)

    def resolve(self, path: str) -> Path:
        """A path of the YAML: as it stands from the current folder, else from the YAML's folder."""
        given = Path(path).expanduser()
        beside = self.path.parent / given
        return given if given.exists() or not beside.exists() else beside


def apply_override(tree: dict[str, Any], assignment: str) -> None:
    """Set `a.b.c=value` in a nested mapping, making the mappings on the way."""
    key, separator, value = assignment.partition("=")
    if not separator or not key:
        raise UserError(f"override {assignment!r}: expected key=value, such as stages.dpo.beta=0.2")
    *path, last = key.split(".")
    for part in path:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
        if not isinstance(tree, dict):
            raise UserError(f"override {assignment!r}: {part!r} is not a section")
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
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping with name, model, data and stages")
    overrides = tuple(overrides)
    for assignment in overrides:
        apply_override(tree, assignment)
    return _build(tree, path, overrides)


def _build(tree: dict[str, Any], path: Path, overrides: tuple[str, ...]) -> ProjectConfig:
    tree = dict(tree)
    for ours in ("path", "overrides"):
        if ours in tree:
            raise UserError(f"{path}: unknown key {ours!r}")
    tree["data"] = _datasets(tree.get("data"), path)
    tree["stages"] = _stages(tree.get("stages"), path)
    if tree.get("evaluate") is False:
        tree["evaluate"] = {"enabled": False}
    for section in ("rewards", "evaluate", "publish"):
        if tree.get(section, ...) is None:  # a section left empty in YAML is null
            del tree[section]
    try:
        project = TypeAdapter(ProjectConfig).validate_python({**tree, "path": path, "overrides": overrides})
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}") from None
    check(project)
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
        if not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: data.{name}: expected {{source: FILE_OR_HUB_ID}} or a list of these")
        holdouts = [row["holdout"] for row in rows if "holdout" in row]
        sources = [{key: item for key, item in row.items() if key != "holdout"} for row in rows]
        result[name] = {"sources": sources, "holdout": max(holdouts, default=None)}
    return result


def _stages(section: Any, path: Path) -> dict[str, Any]:
    """Part each stage's keys into ours and its trainer's, and refuse those of neither."""
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: stages: expected a mapping of stage names")
    own = {field.name for field in dataclasses.fields(StageConfig)} - {"trainer"}
    result = {}
    for name, options in section.items():
        if name not in schema.STAGE_CONFIGS:
            raise UserError(f"{path}: stages: unknown key {name!r}; {unknown_name(str(name), schema.STAGE_CONFIGS)}")
        options = {} if options is None else options
        if not isinstance(options, dict):
            raise UserError(f"{path}: stages.{name}: expected a mapping")
        known = schema.trainer_fields(name)
        for key, value in options.items():
            if key in own:
                continue
            if key not in known:
                hint = unknown_name(str(key), {*known, *own})
                raise UserError(f"{path}: stages.{name}: unknown key {key!r}; {hint}")
            problem = schema.type_problem(value, known[key])
            if problem:
                raise UserError(f"{path}: stages.{name}.{key}: {problem}")
        trainer = {key: value for key, value in options.items() if key not in own}
        result[name] = {**{key: value for key, value in options.items() if key in own}, "trainer": trainer}
    return result


def _first_problem(error: ValidationError) -> str:
    """One line for the first thing wrong, an unknown key with its nearest known name."""
    first = error.errors(include_url=False)[0]
    steps = [str(step) for step in first["loc"] if not str(step)[:1].isupper()]
    where = ".".join(step for step in steps if step not in _UNSAID)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _owner(steps[:-1])
        hint = unknown_name(steps[-1], {field.name for field in dataclasses.fields(owner)} - {"path", "overrides"})
        return f"unknown key {where!r}; {hint}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{where!r} is missing"
    return f"{where}: {first['msg'].lower()}, not {first['input']!r}"


def _owner(steps: list[str]) -> Any:
    """The dataclass in which the last of these keys stands."""
    by_section: Mapping[str, Any] = {
        "model": ModelConfig, "data": DataConfig, "rewards": RewardConfig, "evaluate": EvaluateConfig,
        "publish": PublishConfig, "stages": StageConfig, "sources": SourceConfig,
    }  # fmt: skip
    found = [by_section[step] for step in steps if step in by_section]
    return found[-1] if found else ProjectConfig
