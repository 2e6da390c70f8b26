"""What an export costs: the exported model against the stage's own, on what the run held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from rlhf.artifacts.manifest import finished_stages
from rlhf.config.project import ProjectConfig
from rlhf.data.records import Demonstration, Prompt, as_role
from rlhf.data.splits import canonical
from rlhf.evaluation.compare import Comparison, compare, correct, verdict_of
from rlhf.evaluation.judges import CachedScores, note
from rlhf.evaluation.policy import unscored
from rlhf.evaluation.regressions import Regression, compare_retained
from rlhf.evaluation.retain import RetainedSet, log_likelihoods, retained_rows
from rlhf.evaluation.reward_model import Pairs, margins, pair_accuracy, score_pairs
from rlhf.evaluation.samples import Row, SampledCompletion
from rlhf.evaluation.stats import finite_mean, mean_interval, wins
from rlhf.export.calibrate import HELD_OUT, chosen_records
from rlhf.export.measure import scorer
from rlhf.export.result import PairsExport
from rlhf.models.tasks import CAUSAL_LM
from rlhf.policies.kinds import policy_kind
from rlhf.publish.build import Finished
from rlhf.rewards.load import load_rewards
from rlhf.workflow import scorers

_REPLIES = "held-out replies"


class Compared(NamedTuple):
    """What a comparison of policies found, fields as in `export.result.Exported`."""

    comparisons: list[Comparison]
    retained: list[Regression]
    kl_per_token: float | None


def compare_policies(
    project: ProjectConfig,
    whole: Finished,
    prompts: Sequence[Prompt],
    original: PreTrainedModel,
    exported: PreTrainedModel,
    name: str,
) -> Compared:
    """Have both answer the held-out prompts from the same random numbers, and let the run's judges score the answers.

    Where the exported policy chooses as the original does they write the same, which ties. Judges behind an endpoint
    are not asked.

    Args:
        project: The project; its `evaluate` section says how to sample.
        whole: The stage.
        prompts: Those that no stage trained on.
        original: The stage's policy.
        exported: The exported one.
        name: What to call it.
    """
    stage, settings = whole.stage, project.evaluate
    folders = {each: whole.run_dir / each for each in finished_stages(whole.run_dir) if each in scorers()}
    judges = {each: CachedScores(judge) for each, judge in load_rewards(project, folders).items()}
    rows = [Row(index=n, prompt=prompt.prompt, columns=prompt.extra, replies={}) for n, prompt in enumerate(prompts)]
    kind = policy_kind(whole.opened)
    for policy, model, reference in ((stage, original, None), (name, exported, lambda: original)):
        completed = kind.complete(
            model, prompts, settings, samples=settings.samples, seed=project.seed, label=f"{policy} replies",
            reference=reference,
        )  # fmt: skip
        kl: Any = completed.kl or [[None] * len(row) for row in completed.completions]
        samples = [
            [unscored(completion, value) for completion, value in zip(row, values, strict=True)]
            for row, values in zip(completed.completions, kl, strict=True)
        ]
        note(rows, prompts, policy, samples, judges)
    return Compared(
        comparisons=correct([compare(rows, name, stage, judge) for judge in judges]),
        retained=_likelihood(project, whole, {stage: original, name: exported}),
        kl_per_token=_per_token([sample for row in rows for sample in row["replies"][name]]),
    )


def _per_token(samples: Sequence[SampledCompletion]) -> float | None:
    known = [(sample["kl"], sample["tokens"]) for sample in samples if sample["kl"] is not None and sample["tokens"]]
    tokens = sum(count or 0 for _, count in known)
    return sum(kl or 0.0 for kl, _ in known) / tokens if tokens else None


def _likelihood(project: ProjectConfig, whole: Finished, models: Mapping[str, PreTrainedModel]) -> list[Regression]:
    """Both policies on held-out replies, of pairs the chosen ones; nothing where there are none."""
    roles = ("demonstrations", "preferences")
    role = next((role for role in roles if getattr(project.data, role) is not None), None)
    if whole.opened.task is not CAUSAL_LM or role is None:
        return []
    records = [as_role(record, "demonstrations") for record in chosen_records(project, role, "eval", HELD_OUT)]
    kept = tuple(record for record in records if isinstance(record, Demonstration))
    if not kept:
        return []
    replies = RetainedSet(_REPLIES, None, kept)
    values = {
        name: {_REPLIES: log_likelihoods(replies, whole.opened, model.eval(), 0, len(kept))}
        for name, model in models.items()
    }
    stage, name = models
    return compare_retained(retained_rows([replies], values), [stage, name], {name: stage})


def compare_scorers(whole: Finished, pairs: Pairs, original: PreTrainedModel, exported: PreTrainedModel) -> PairsExport:
    """How often both reward models rank held-out pairs right.

    The difference is paired, and its interval is over prompts, whose pairs count together.

    Args:
        whole: The stage.
        pairs: Held-out pairs.
        original: The stage's reward model.
        exported: The exported one.
    """
    judge = scorer(whole)
    scores = [score_pairs(judge(model), pairs.records) for model in (original, exported)]
    before, after = (pair_accuracy(each_M2, pairs) for each_M2 in scores)
    right = [np.nan_to_num(wins(margins(each_M2)), nan=0.5) for each_M2 in scores]
    _, place_M = np.unique([canonical(prompt) for prompt in pairs.prompts], return_inverse=True)
    difference_P = np.bincount(place_M, right[1] - right[0]) / np.bincount(place_M)
    interval = mean_interval(difference_P)
    return PairsExport(
        n=before["n"], accuracy=before["accuracy"], accuracy_ci=before["accuracy_ci"],
        exported_accuracy=after["accuracy"], exported_accuracy_ci=after["accuracy_ci"],
        difference=finite_mean(right[1] - right[0]) or 0.0, difference_ci=interval,
        verdict=verdict_of(interval, len(difference_P)),
    )  # fmt: skip
