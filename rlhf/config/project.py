"""A project and its sections, as dataclasses; `rlhf.config.load` reads them from a YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic.dataclasses import dataclass

from rlhf.config.fields import PLAIN, STRICT, Count, Flag, within
from rlhf.config.ranges import Interval
from rlhf.config.sets import DataConfig, Weight
from rlhf.config.stage_id import StageId as StageId  # part of a project's interface

SEEDS = Interval.of("[0, 4294967295]")  # what NumPy takes
MOST_SEEDS = 100
Seed = Annotated[int, PLAIN, within(SEEDS)]


@dataclass(frozen=True, config=STRICT)
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
    policy: str | None = None
    """What kind of policy it becomes: `causal_lm`, `label`, `span`, `seq2seq`; null takes what the model is."""
    adapter: dict[str, Any] | None = dataclasses.field(default_factory=lambda: {"r": 16})
    """Fields of `peft.LoraConfig`; null trains all weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type the weights are loaded in, and computed in where they are quantized."""
    quantization: Literal["nf4"] | None = None
    """Hold the frozen weights of the linear layers in 4 bits (QLoRA): less memory, slower steps. Needs an adapter."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`; null lets transformers choose."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    eos_token: str | None = None
    """End-of-sequence token, where the tokenizer names none or the wrong one."""
    pad_token: str | None = None
    """Padding token, where the tokenizer names none or the same as EOS."""


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    """What "better" means: a judge in evaluation, a reward in online training. One of function, model and endpoint."""

    function: str | None = None
    """`package.module:function` or `path/to/file.py:function`, called as `f(prompts, completions, **columns)`."""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the function, by name; a column of the data does not replace them."""
    model: str | list[str] | None = None
    """Folder or hub id of a sequence classifier of any architecture; a list of them is an ensemble."""
    label: int | str | None = None
    """Number or name of the class whose log odds are the score, where a model has more than one label."""
    std_weight: Annotated[float, PLAIN, within("[0, inf)")] | None = None
    """k of an ensemble's score, mean - k * std; null is 1."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server whose model compares replies, such as `http://127.0.0.1:8000/v1`."""
    judge_model: str | None = None
    """Name of that model, as the server knows it."""
    criteria: str | None = None
    """What better means to that model, one paragraph; null asks for helpful, correct, honest and harmless."""
    max_tokens: int | None = None
    """Longest answer of that model, in tokens, what it thinks aloud included; null is 1024."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key; the key itself stands in no file."""

    @property
    def models(self) -> list[str]:
        """The models, of which there are several in an ensemble and none for a function."""
        return self.model if isinstance(self.model, list) else [] if self.model is None else [self.model]


@dataclass(frozen=True, config=STRICT)
class RetainConfig:
    """Rows on which no policy may get worse: text by its loss, or a task by the score of a judge."""

    source: str
    """As in `data:`."""
    format: str | None = None
    """Name of a format; null looks at the columns."""
    split: str | None = None
    """Split of a hub dataset."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Our column name: the file's column name."""
    judge: str | None = None
    """A reward that scores greedy replies to the rows' prompts; null takes the loss on the rows' own replies."""
    limit: Count = 200
    """Most rows used."""


Perturbation = Literal["typos", "case", "drop_words", "noise"]
"""What can be done to an input that does not change what is right (`rlhf.evaluation.perturb`)."""


@dataclass(frozen=True, config=STRICT)
class EvaluateConfig:
    """How policies are compared; `evaluate: false` leaves the comparison out."""

    enabled: Flag = True
    """Whether policies are compared at all: a classifier has no replies to judge."""
    prompts: Count = 200
    """Most prompts used."""
    samples: Count = 4
    """Replies a prompt from each policy."""
    max_new_tokens: Count = 128
    """Longest reply, in tokens."""
    temperature: Annotated[float, PLAIN, within("[0, inf)")] = 1.0
    """Sampling temperature; 0 is greedy."""
    batch_size: Count = 64
    """Replies generated at once."""
    group_by: str | None = None
    """A column of the prompts' rows; policies are compared within each of its values too."""
    retain: dict[str, RetainConfig] = dataclasses.field(default_factory=dict)
    """What must not be lost, by name."""
    perturb: list[Perturbation] = dataclasses.field(default_factory=list)
    """Compare policies on perturbed inputs too: texts with `typos`, `case` or `drop_words`, images with `noise`."""
    attributions: Annotated[int, PLAIN, within("[0, 100]")] = 0
    """Rows of which the report shows which tokens a classifier's answer and a reward model's score rest on."""


@dataclass(frozen=True, config=STRICT)
class RoundsConfig:
    """How later rounds train, each from the policy of the one before; the first is the plain run."""

    start: str | None = None
    """The policy that a round leaves to the next; null is the last of its stages."""
    stages: list[str] | None = None
    """Stages of later rounds; null is all but `sft`."""
    votes: Weight = 1.0
    """Weight of the votes: how often each is used."""
    earlier: Weight = 1.0
    """Weight of the project's own preferences and feedback; it multiplies that of each source."""


@dataclass(frozen=True, config=STRICT)
class PublishConfig:
    """Where `rlhf publish` pushes to; nothing else ever pushes."""

    to: str | None = None
    """Hub id, `user/name`."""
    merge: Flag = False
    """Publish merged weights instead of the adapter."""
    private: Flag = True
    """Create the repository as private."""


@dataclass(frozen=True, config=STRICT)
class StageConfig:
    """One stage of a project: our few fields, and the fields of its trainer's config class."""

    model: ModelConfig | None = None
    """Start from this model instead of the parent stage (an encoder reward model, say)."""
    parent: str | None = None
    """The stage (or `base`) to start from, where it is not the usual one."""
    adapter: dict[str, Any] | Literal["inherit"] | None = "inherit"
    """As `model.adapter`, for this stage alone."""
    freeze: list[str] = dataclasses.field(default_factory=list)
    """Parts of the model that are not trained, such as `embeddings` and `encoder.layer.[0-3]`: parts of parameters'
    names, regular expressions between dots. More forgets less and learns less."""
    checkpoint_judge: str | None = None
    """Name of a judge, not maximised, that scores every checkpoint of a policy."""
    select: Literal["last", "best"] = "last"
    """Which checkpoint of a policy is kept: the last, or the one that the checkpoint judge scores highest."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is not finite ends the training, or is skipped; `incident.json` describes it."""
    seeds: Annotated[int, PLAIN, within(f"[1, {MOST_SEEDS}]")] = 1
    """How often it is trained, each time from another seed; what follows starts from the first."""
    fold: Flag = True
    """Compute what sequences share once, the head where labels are, rows of like length together; false does not."""
    trainer: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the trainer's config class."""


@dataclass(frozen=True, config=STRICT)
class ProjectConfig:
    """A whole project, as one YAML file describes it."""

    name: str
    """Output goes to `output_dir/name`."""
    model: ModelConfig
    """The base model."""
    seed: Seed = 0
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
    rounds: RoundsConfig = dataclasses.field(default_factory=RoundsConfig)
    """How later rounds train."""
    publish: PublishConfig = dataclasses.field(default_factory=PublishConfig)
    """Where to publish, when asked."""
    gate: Literal["stop", "warn"] = "stop"
    """Whether online training waits for its reward models to pass the gate, or goes on and the report says so."""
    report_to: str | list[str] | None = None
    """Where every stage reports what it logs and measures: `tensorboard`, `wandb`, `trackio`; null reports nowhere."""
    path: Path = Path("project.yaml")
    """The file this was read from; set by `load_project`."""
    overrides: tuple[str, ...] = ()
    """How it differs from that file; set by `load_project`."""
    round: int = 1
    """Which round of the file's project this is; set by `rlhf.pipeline.rounds`."""

    @property
    def run_dir(self) -> Path:
        """Folder of this project's artefacts."""
        return Path(self.output_dir) / self.name

    @property
    def holdout(self) -> float:
        """Share of prompts held out of training: one value for all sets, so that no prompt changes sides."""
        sets = (self.data.demonstrations, self.data.preferences, self.data.feedback, self.data.rollouts)
        given = [dataset.holdout for dataset in sets if dataset is not None and dataset.holdout is not None]
        return max(given, default=0.1)

    @property
    def stage_names(self) -> list[str]:
        """Names of the stages under `stages:`, with their repetitions."""
        return [
            str(StageId(kind, repetition)) for kind, config in self.stages.items() for repetition in range(config.seeds)
        ]

    def has_stage(self, name: str) -> bool:
        """Whether a stage of this name, or one that it repeats, stands under `stages:`."""
        return name in self.stage_names

    def stage(self, name: str) -> StageConfig:
        """The settings of a stage, which its repetitions share."""
        return self.stages[StageId.parse(name).kind]

    def stage_seed(self, name: str) -> int:
        """The seed a stage is trained with: the project's, and one more for each repetition (`dpo@1`, `dpo@2`)."""
        return self.seed + StageId.parse(name).repetition

    def stage_model(self, name: str) -> ModelConfig:
        """The model a stage starts from when it starts from no other stage, with the stage's own adapter setting."""
        config = self.stage(name)
        model = config.model or self.model
        return model if config.adapter == "inherit" else dataclasses.replace(model, adapter=config.adapter)

    def resolve(self, path: str) -> Path:
        """A path of the YAML: as it stands from the current folder, else from the YAML's folder."""
        given = Path(path).expanduser()
        beside = self.path.parent / given
        return given if given.exists() or not beside.exists() else beside
