"""What one policy writes in the comparison, how far it is from its reference, and what it does on the retained sets."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from rlhf.config.project import ProjectConfig
from rlhf.data.records import Prompt
from rlhf.data.tokenize import Codec
from rlhf.evaluation.completions import fitted, load, sample_completions
from rlhf.evaluation.retain import RetainedSet, measure
from rlhf.evaluation.samples import SampledCompletion
from rlhf.models.settings import base_settings, stage_settings
from rlhf.policies.completion import Completion
from rlhf.policies.kl import sequence_kl
from rlhf.rewards import RewardFunction
from rlhf.workflow import BASE, own_base, parent_of, policies_of


class PolicyMeasures(NamedTuple):
    """What one policy does."""

    completions: list[list[SampledCompletion]]
    """Those of each prompt, not scored yet."""
    cut: int
    """Prompts of which only the end fitted the context."""
    retained: dict[str, list[float | None]]
    """Its values on the rows of each set of `evaluate.retain`."""


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
) -> PolicyMeasures:
    """Have a policy complete the prompts, and measure it on the retained sets.

    Args:
        project: The project; its `evaluate` section says how to sample.
        folders: Finished stages, by name.
        name: The policy: a stage or a base model.
        reference: The policy that KL is measured to; None for no KL.
        prompts: What is completed.
        sets: Those of `evaluate.retain`.
        judges: What scores completions of a retained set, by name.
    """
    settings = project.evaluate
    model, codec = _load(project, folders, name)
    ids, cut = fitted(model, codec, [prompt.prompt for prompt in prompts], settings.max_new_tokens)
    sampled = sample_completions(project, model, codec, ids, settings.samples, name)
    kl: Sequence[Sequence[float | None]] = [[None] * len(row) for row in sampled]
    if reference is not None:
        start, _ = _load(project, folders, reference)
        kl = sequence_kl(model, start, ids, sampled, settings.temperature or 1.0)
        del start
    limits = settings.max_new_tokens, settings.batch_size
    retained = {each.name: measure(each, model, codec, judges, *limits) for each in sets}
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    completions = [
        [_unscored(completion, value) for completion, value in zip(row, values, strict=True)]
        for row, values in zip(sampled, kl, strict=True)
    ]
    return PolicyMeasures(completions, cut, retained)


def _unscored(completion: Completion, kl: float | None) -> SampledCompletion:
    text, tokens = completion.text, len(completion.ids)
    return SampledCompletion(text=text, tokens=tokens, finished=completion.finished, kl=kl, scores={})


def _load(project: ProjectConfig, folders: Mapping[str, Path], name: str) -> tuple[PreTrainedModel, Codec]:
    """A policy with its own tokenizer: a finished stage, or a base model."""
    stage = next((stage for stage in policies_of(project) if name in (stage, own_base(stage))), None)
    return load(project, folders.get(name), stage)
