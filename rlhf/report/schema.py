"""The contents of report.json, field by field, and the questions that its readers ask of them.

Every number is finite or null; every interval is [low, high] at 95%. A field may be missing only where it says so
(`total=False`): a stage reports what it measured, and a run from before a field existed lacks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from rlhf.evaluation.attributed import Attribution
from rlhf.evaluation.classifiers import Classification
from rlhf.evaluation.compare import Comparison, GroupComparison
from rlhf.evaluation.gate import GateModel
from rlhf.evaluation.overoptimisation import Point
from rlhf.evaluation.regressions import Regression
from rlhf.evaluation.robustness import Robustness
from rlhf.evaluation.rounds import Rounds
from rlhf.evaluation.samples import SampledCompletion
from rlhf.evaluation.seeds import SeedSummary
from rlhf.evaluation.summary import Summary
from rlhf.evaluation.unjudged import Measured
from rlhf.workflow import Leaves

if TYPE_CHECKING:
    from rlhf.rewards.endpoint import JudgeReport

Curves = dict[str, list[list[float]]]
"""Metric -> [[optimizer step, value], …], at most 300 points, neighbours averaged."""


class DroppedRow(TypedDict):
    """A row that was left out."""

    origin: str
    """File and line."""
    reason: str
    """Why, as the ledger counts it."""


class Rows(TypedDict, total=False):
    """What became of the rows of a set; counts of rows. `read` is trained + evaluated + all of `dropped`."""

    read: int
    """All rows of the set."""
    trained: int
    """Rows trained on, each counted once."""
    evaluated: int
    """Held out to evaluate on."""
    repeated: int
    """Further copies of training rows, from a weight above 1."""
    held_out: int
    """Rows whose prompt is held out of training: evaluated on, or dropped."""
    truncated: int
    """Rows used of which tokens were cut."""
    eos_lost: int
    """Of these, rows that lost their end-of-sequence token."""
    prompt_trimmed: int
    """Of these, rows that lost tokens of the prompt."""
    dropped: dict[str, int]
    """Rows left out, by reason."""
    duplicates: int
    """`dropped["duplicate"]`."""
    left_out: dict[str, dict[str, Any]]
    """By column and kind of value: `rows`, of which it was left out, and the origin of the `first`."""
    examples: list[DroppedRow]
    """The first rows that were dropped."""


class Findings(TypedDict):
    """What in a stage's data misleads training or evaluation (`data.findings`)."""

    set: str
    """The set that was read."""
    lines: list[str]
    """What is worth telling, a sentence each, most severe first."""
    findings: list[dict[str, Any]]
    """Everything that was looked for (`data.findings.Finding`)."""


class Ranked(TypedDict):
    """What was kept of a policy's replies, by their scores (`evaluation.ranking`)."""

    keep: str
    """`pairs` of best and worst, or the `best` alone."""
    prompts: int
    """Prompts replied to."""
    kept: int
    """Prompts of which something is kept."""
    replies: int
    """Replies that were scored."""
    cut: float | None
    """Share of the replies that were cut at the limit."""
    ties: float | None
    """Share of the prompts of which no reply scores lower than the best."""
    judges: dict[str, dict[str, float | None]]
    """Judge -> mean score of the `best`, of the `worst` and of `all` replies, in its own units."""
    margin: float | None
    """Mean score of best less worst, in the units that replies are ranked by."""
    length_best: float | None
    """Mean length, tokens."""
    length_worst: float | None
    """The same of the worst."""
    longer: float | None
    """Share of pairs whose better reply is the longer one, equal lengths half."""
    longer_ci: list[float] | None
    """Its interval."""


class StageReport(TypedDict, total=False):
    """What one stage measured; each stage has some of these fields, and may have others of its own."""

    loss: float | None
    """Held-out loss at the end, in the loss's unit (nats a token for SFT, nats a pair for preferences)."""
    loss_before: float | None
    """The same before the first step."""
    train_loss: float | None
    """Mean over all optimizer steps."""
    steps: int
    """Optimizer steps."""
    skipped_steps: int
    """Those without an update, since their numbers were not finite (`on_nonfinite: skip`)."""
    train_rows: int
    """Rows trained on."""
    eval_rows: int
    """Rows held out to evaluate on."""
    train_time_s: float
    """Seconds."""
    warning: str | None
    """What the stage itself noticed in training, as a sentence without its full stop."""

    accuracy: float | None
    """Share of held-out pairs ranked right, ties half (`evaluation.reward_model`; DPO: by its implicit reward); of a
    classifier the share of held-out rows."""
    accuracy_ci: list[float] | None
    """Its interval; pairs of one prompt count together."""
    length_baseline: float | None
    """Share of the same pairs that length alone ranks right (`evaluation.reward_model.length_baseline`)."""
    length_baseline_ci: list[float] | None
    """Its interval, as that of the accuracy."""
    n: int
    """Held-out pairs."""
    margin: float | None
    """Mean score (DPO: β · nats) of chosen less rejected, held-out pairs."""

    scores: float
    """PPO: mean normalised score of the last rollout's completions."""
    scores_first: float
    """The same of the first rollout."""
    kl: float
    """Mean KL to the reference in the last rollout, nats a completion."""
    length: float
    """Mean length in the last rollout, tokens."""
    eos_share: float
    """Share of the last rollout's completions that ended by themselves."""
    episodes: float
    """Completions sampled in training."""
    rollouts: int
    """How often completions were sampled for training."""

    checkpoint_judge: str | None
    """Name of the judge that checkpoints were held against and training did not see."""
    tracked: list[Point]
    """The start and every checkpoint."""
    tracked_on: str
    """`eval` or `train`: which side the prompts of `tracked` are from."""
    selected_step: int
    """Optimizer step of the checkpoint that the stage left."""
    overoptimised: str | None
    """What `overoptimisation.warning` says of `tracked`."""

    passed: bool
    """Gate: whether every reward model passed."""
    models: dict[str, GateModel]
    """Gate: each reward model that training would maximise, by name."""
    policy: str
    """Gate: the policy whose completions were scored beside the pairs."""
    gates: str
    """Gate: the stage that may run only if this one passed; of several the first."""
    also_gates: list[str]
    """Gate: the other stages that may run only if this one passed."""

    ranked: Ranked
    """What `rank` kept."""

    rows: dict[str, Rows]
    """By set, from the stage's ledger."""
    findings: Findings
    """What misleads training in the stage's data."""


class Evaluation(TypedDict):
    """How the policies were compared."""

    samples: int | None
    """Completions a prompt of each policy."""
    temperature: float | None
    """Of the sampling; 0 is greedy decoding."""
    max_new_tokens: int | None
    """Longest completion, tokens."""
    policies: list[str]
    """`base` first, then in the order they were trained."""
    judges: list[str]
    """The run's own reward models last: policies may have been trained against them."""
    measures: list[str]
    """What `comparisons` has beside the judges: measures of all rows together (`evaluation.classifiers.MEASURES`)."""
    kinds: dict[str, str]
    """Policy -> what kind of policy it is; those that are not named write text."""
    prompts: int
    """Prompts that every policy replied to."""
    prompts_cut: int | None
    """Prompts that lost their beginning, since with the completion they would not fit the context."""
    group_by: str | None
    """The column that `groups` groups by."""
    parents: dict[str, str]
    """Policy -> the policy that its training started from."""
    references: dict[str, str]
    """Policy -> the policy that its KL is measured to."""


class ShownPrompt(TypedDict):
    """A prompt with completions of every policy, to be read."""

    index: int
    """Line of samples.jsonl, from 0."""
    prompt: Any
    """Text, or messages ({"role", "content"})."""
    replies: dict[str, list[SampledCompletion]]
    """By policy."""


class Provenance(TypedDict, total=False):
    """Where a stage comes from, of its stage.json."""

    label: str
    """The stage as it is written in a table."""
    kind: str
    """The stage without its repetition: `dpo` of `dpo@1`."""
    repetition: int
    """0 for the first training; `dpo@1` is the first repetition, from another seed."""
    order: int
    """Stages stand in this order."""
    method: str
    """What it does, as a model card says it."""
    leaves: Leaves
    """What kind of result it has."""
    artifact: str
    """Hash of its model files."""
    hash: str
    """Hash of everything that decides what the stage produces."""
    parents: dict[str, str | None]
    """The stages that it read, with their `artifact`."""
    data: dict[str, Any]
    """Fingerprints of the sets that it read."""
    seed: int
    """Of everything random in it."""
    versions: dict[str, str]
    """Of Python and the libraries that ran it."""
    git_sha: str | None
    """Commit of the project's checkout; null where it is in none."""
    tokenizer: dict[str, Any]
    """Its special tokens, and hashes of template and vocabulary."""
    max_length: int | None
    """Longest sequence, tokens."""
    lineage: dict[str, Any]
    """`base`, `revision` and `adapter`: the weights it goes back to."""
    wall_time_s: float
    """How long it took, seconds."""
    peak_memory_mb: float
    """Largest resident memory of the main process, MiB."""
    config: dict[str, Any]
    """Its settings, less secrets."""


class Report(TypedDict):
    """report.json."""

    name: str
    """Of the run."""
    created: str
    """ISO 8601, UTC."""
    version: str
    """Of this package."""
    stages: dict[str, StageReport]
    """Every finished stage but the comparison, in the order they ran."""
    comparisons: list[Comparison]
    """Over all prompts, by every judge and measure."""
    measured: list[Measured]
    """Every policy by what needs no judge, where there is none; else empty."""
    seeds: list[SeedSummary]
    """The same of what was trained with several seeds."""
    groups: list[GroupComparison]
    """The comparisons within each group of prompts; the first seed only."""
    rounds: Rounds | None
    """The policy of this round beside those that earlier rounds left; null of a first round."""
    retained: list[Regression]
    """Every policy on the sets of `evaluate.retain`."""
    classification: Classification | None
    """How right and how sure policies are that choose a class or mark a span; null where none does."""
    robustness: Robustness | None
    """Policies on the inputs of `evaluate.perturb`; null where there are none."""
    attributions: list[Attribution]
    """The tokens that scores rest on, as many rows as `evaluate.attributions`."""
    comparing: dict[str, JudgeReport]
    """What each judge that compares two completions was asked and how it answered."""
    policies: list[Summary]
    """What each policy is like."""
    evaluation: Evaluation | None
    """Null before policies have been compared."""
    samples: list[ShownPrompt]
    """Prompts to be read, with completions of every policy."""
    curves: dict[str, Curves]
    """By stage."""
    provenance: dict[str, Provenance]
    """By stage, the comparison included."""


def gates(report: Report) -> Iterator[tuple[str, StageReport]]:
    """The stages that held reward models against held-out pairs."""
    for name, stage in report["stages"].items():
        if report["provenance"][name].get("leaves") == "verdict":
            yield name, stage


def gated_models(report: Report) -> dict[str, GateModel]:
    """What the gate measured of each reward model, by name."""
    return {name: model for _, gate in gates(report) for name, model in gate["models"].items()}


def reward_models(report: Report) -> dict[str, StageReport]:
    """The stages that left a reward model."""
    provenance = report["provenance"]
    return {name: stage for name, stage in report["stages"].items() if provenance[name].get("leaves") == "scorer"}


def unjudged(report: Report) -> bool:
    """Whether policies were evaluated and nothing judged them: no judge, and no answer that is known to be right."""
    evaluation = report["evaluation"]
    return evaluation is not None and not evaluation["judges"] and not evaluation["measures"]


def answers_only(report: Report) -> bool:
    """Whether every policy chooses its answer from what is there, so that lengths and wording say nothing."""
    kinds = report["evaluation"]["kinds"] if report["evaluation"] else {}
    return bool(kinds) and set(kinds.values()) <= {"label", "span"}


def parents(report: Report) -> Mapping[str, str]:
    """Policy -> the policy that its training started from; empty before policies have been compared."""
    return report["evaluation"]["parents"] if report["evaluation"] else {}
