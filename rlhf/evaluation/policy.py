"""What one policy answers in the comparison, perturbed too, how far it went, and what it does on the retained sets."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from rlhf.artifacts.open import OpenedModel
from rlhf.config.project import ProjectConfig
from rlhf.data.records import Prompt
from rlhf.evaluation.attributed import Attribution
from rlhf.evaluation.attribution import of_decisions
from rlhf.evaluation.completions import complete, open_policy
from rlhf.evaluation.retain import RetainedSet, measure
from rlhf.evaluation.samples import SampledCompletion
from rlhf.models.settings import base_settings, stage_settings
from rlhf.policies.completion import Completion
from rlhf.rewards import RewardFunction
from rlhf.workflow import BASE, own_base, parent_of, policies_of


class PolicyMeasures(NamedTuple):
    """What one policy does."""

    completions: list[list[SampledCompletion]]
    """Those of each prompt, not scored yet."""
    kind: str
    """What kind of policy it is (`rlhf.policies`)."""
    cut: int
    """Prompts of which only the end fitted the context."""
    retained: dict[str, list[float | None]]
    """Its values on the rows of each set of `evaluate.retain`."""
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
    perturbed: Sequence[Prompt] = (),
) -> PolicyMeasures:
    """Have a policy complete the prompts, as they are and perturbed, and measure it on the retained sets.

    Args:
        project: The project; its `evaluate` section says how to sample.
        folders: Finished stages, by name.
        name: The policy: a stage or a base model.
        reference: The policy that KL is measured to; None for no KL.
        prompts: What is completed.
        sets: Those of `evaluate.retain`.
        judges: What scores completions of a retained set, by name.
        perturbed: Perturbed prompts, completed too.
    """
    settings = project.evaluate
    opened = _open(project, folders, name)
    model = opened.policy()
    start = None if reference is None else _open(project, folders, reference)
    load_start = None if start is None or not start.has_head else start.policy
    completed = complete(project, opened, model, prompts, settings.samples, name, load_start)
    kl: Sequence[Sequence[float | None]] = completed.kl or [[None] * len(row) for row in completed.completions]
    retained = {each.name: measure(each, opened, model, judges, settings) for each in sets}
    again = (
        complete(project, opened, model, perturbed, settings.samples, f"{name} perturbed").completions
        if perturbed
        else []
    )
    answers = [row[0].text for row in completed.completions[: settings.attributions]]
    decisions = of_decisions(opened, model, name, prompts[: len(answers)], answers)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    completions = [
        [_unscored(completion, value) for completion, value in zip(row, values, strict=True)]
        for row, values in zip(completed.completions, kl, strict=True)
    ]
    without_kl = [[_unscored(completion, None) for completion in row] for row in again]
    return PolicyMeasures(completions, opened.task.policy, completed.cut, retained, without_kl, decisions)


def answers(project: ProjectConfig, folders: Mapping[str, Path], name: str) -> bool:
    """Whether a policy can answer: a base model whose task takes a new head cannot, before a stage has trained one."""
    return _open(project, folders, name).has_head


def _unscored(completion: Completion, kl: float | None) -> SampledCompletion:
    text, tokens = completion.text, len(completion.ids)
    log_prob = sum(completion.log_probs) if completion.log_probs else None
    return SampledCompletion(
        text=text, tokens=tokens, finished=completion.finished, kl=kl, log_prob=log_prob, scores={}
    )


def _open(project: ProjectConfig, folders: Mapping[str, Path], name: str) -> OpenedModel:
    """A policy: a finished stage, or a base model."""
    stage = next((stage for stage in policies_of(project) if name in (stage, own_base(stage))), None)
    return open_policy(project, folders.get(name), stage)
