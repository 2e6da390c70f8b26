"""What one policy answers in the comparison, perturbed too, how far it went, and what it does on the retained sets."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from rlhf.artifacts.open import OpenedModel
from rlhf.config.project import EvaluateConfig, ProjectConfig
from rlhf.data.records import Prompt
from rlhf.evaluation.attributed import Attribution
from rlhf.evaluation.attribution import of_decisions
from rlhf.evaluation.completions import complete, open_policy
from rlhf.evaluation.kept import Kept
from rlhf.evaluation.retain import RetainedSet, greedy_completions, judged, log_likelihoods
from rlhf.evaluation.samples import SampledCompletion
from rlhf.models.settings import base_settings, stage_settings
from rlhf.models.tasks import CAUSAL_LM
from rlhf.policies.completion import Completion
from rlhf.policies.kinds import Completed
from rlhf.rewards import RewardFunction
from rlhf.workflow import BASE, own_base, parent_of, policies_of

_BATCHES = 8
"""Batches of the sampler between two writes."""
Load = Callable[[], PreTrainedModel]


class PolicyMeasures(NamedTuple):
    """What one policy does."""

    completions: list[list[SampledCompletion]]
    """Those of each prompt, not scored yet."""
    kind: str
    """What kind of policy it is (`rlhf.policies`)."""
    cut: int
    """Prompts of which only the end fitted the context."""
    retained: dict[str, list[float | None]]
    """Its values on the rows of each set that it was measured on."""
    perturbed: list[list[SampledCompletion]]
    """Those of each perturbed prompt, not scored yet; their KL is not measured."""
    decisions: list[Attribution]
    """The tokens that its answers rest on, of as many rows as `evaluate.attributions`; none of other kinds."""


def started_from(project: ProjectConfig, name: str) -> str:
    """The policy that a stage's training started from: a stage, the project's base model, or one of its own."""
    if (parent := parent_of(project, name)) is not None:
        return parent
    own, base = (replace(config, adapter=None) for config in (stage_settings(project, name), base_settings(project)))
    return BASE if own == base else own_base(name)


def measure_policy(
    project: ProjectConfig,
    folders: Mapping[str, Path],
    name: str,
    reference: str | None,
    prompts: Sequence[Prompt],
    sets: Sequence[RetainedSet],
    judges: Mapping[str, RewardFunction],
    perturbed: Sequence[Prompt],
    kept: Kept,
) -> PolicyMeasures:
    """Have a policy complete the prompts, as they are and perturbed, and measure it on the retained sets.

    What was made before an interruption is not made again, and the rest becomes what it would have been.

    Args:
        project: The project; its `evaluate` section says how to sample.
        folders: Finished stages, by name.
        name: The policy: a stage or a base model.
        reference: The policy that KL is measured to; None for no KL.
        prompts: What is completed.
        sets: Those of `evaluate.retain`, and what it is measured on where nothing judges.
        judges: What scores completions of a retained set, by name.
        perturbed: Perturbed prompts, completed too.
        kept: Where what is finished is kept.
    """
    settings = project.evaluate
    at_once = max(1, _BATCHES * settings.batch_size // settings.samples)
    opened = _open(project, folders, name)
    model = functools.cache(opened.policy)  # loaded once there is something left to do
    start = None if reference is None else _open(project, folders, reference)
    load_start = None if start is None or not start.has_head else functools.cache(start.policy)

    def sampled(label: str, asked: Sequence[Prompt], reference: Load | None = None) -> list[Any]:
        def batch(first: int, last: int) -> list[dict[str, Any]]:
            completed = complete(
                project, opened, model(), asked[first:last], settings.samples, label, reference, first=first
            )
            return _lines(completed)

        return kept.lines(f"{label} replies", len(asked), at_once, batch)

    replies = sampled(name, prompts, load_start)
    retained = {each.name: _on_retained(each, name, opened, model, judges, settings, kept) for each in sets}
    again = sampled(f"{name} perturbed", perturbed)
    said = [line["replies"][0]["text"] for line in replies[: settings.attributions]]
    decisions = kept.lines(
        f"{name} decisions", len(said), len(said),
        lambda first, last: [of_decisions(opened, model(), name, prompts[row : row + 1], said[row : row + 1], row)
                             for row in range(first, last)],
    )  # fmt: skip
    for loaded in (model, load_start):
        if loaded is not None:
            loaded.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return PolicyMeasures(
        [line["replies"] for line in replies], opened.task.policy, sum(line["cut"] for line in replies), retained,
        [line["replies"] for line in again], [*itertools.chain(*decisions)],
    )  # fmt: skip


def _on_retained(
    retained: RetainedSet,
    name: str,
    opened: OpenedModel,
    model: Load,
    judges: Mapping[str, RewardFunction],
    settings: EvaluateConfig,
    kept: Kept,
) -> list[float | None]:
    """A policy's values on a retained set, which is one batch."""
    count = len(retained.records)
    if retained.held_out and opened.task is not CAUSAL_LM:
        return [None] * count
    if retained.judge is None:
        return kept.lines(
            f"{name} on {retained.name}", count, count,
            lambda first, last: log_likelihoods(retained, opened, model(), first, last),
        )  # fmt: skip
    texts = kept.lines(
        f"{name} solves {retained.name}", count, count,
        lambda first, last: greedy_completions(retained, opened, model(), settings, first, last),
    )  # fmt: skip
    return judged(retained, texts, judges[retained.judge])


def _lines(completed: Completed) -> list[dict[str, Any]]:
    """What is kept of the answers to a batch of prompts; the first line has how many prompts of it were cut."""
    kl: Sequence[Sequence[float | None]] = completed.kl or [[None] * len(row) for row in completed.completions]
    return [
        {
            "replies": [unscored(completion, value) for completion, value in zip(row, values, strict=True)],
            "cut": 0 if place else completed.cut,
        }
        for place, (row, values) in enumerate(zip(completed.completions, kl, strict=True))
    ]


def answers(project: ProjectConfig, folders: Mapping[str, Path], name: str) -> bool:
    """Whether a policy can answer: a base model whose task takes a new head cannot, before a stage has trained one."""
    return _open(project, folders, name).has_head


def unscored(completion: Completion, kl: float | None) -> SampledCompletion:
    """A completion as it stands in `samples.jsonl` before judges have scored it.

    Args:
        completion: What was sampled.
        kl: KL to the reference, nats; None without one.
    """
    text, tokens = completion.text, len(completion.ids)
    log_prob = sum(completion.log_probs) if completion.log_probs else None
    return SampledCompletion(
        text=text, tokens=tokens, finished=completion.finished, kl=kl, log_prob=log_prob, scores={}
    )


def _open(project: ProjectConfig, folders: Mapping[str, Path], name: str) -> OpenedModel:
    """A policy: a finished stage, or a base model."""
    stage = next((stage for stage in policies_of(project) if name in (stage, own_base(stage))), None)
    return open_policy(project, folders.get(name), stage)
