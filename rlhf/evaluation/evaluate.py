"""What the evaluate stage measures: the replies of a policy, their scores, and which of two a judge prefers."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf.config.project import ProjectConfig
from rlhf.data.records import Prompt, Text
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.evaluation.completions import fitted, load, replies_to
from rlhf.evaluation.retain import RetainedSet, measure
from rlhf.models.settings import base_settings, stage_settings
from rlhf.policies.completion import Completion, as_completion
from rlhf.policies.kl import sequence_kl
from rlhf.rewards import RewardFunction, columns_of
from rlhf.rewards.endpoint import EndpointJudge
from rlhf.rewards.load import load_rewards
from rlhf.workflow import BASE, StageContext, own_base, parent_of, policies_of


def try_functions(project: ProjectConfig, prompts: Sequence[Prompt]) -> None:
    """Let the functions that judge score a reply and an empty one, which a policy may give too.

    Raises:
        UserError: One fails, or returns something else than a score a reply.
    """
    functions = load_rewards(project, names=[name for name, one in project.rewards.items() if one.function])
    for text, kind in (("A reply.", "a reply"), ("", "an empty reply")):
        try:
            score([[{"text": text, "scores": {}}] for _ in prompts], prompts, functions)
        except UserError as error:
            raise UserError(f"{error} (tried on {kind} to the first prompts)") from None


class Remembering:
    """A judge that is asked once about what it is asked again, so that identical replies tie.

    A model's score of the same text differs by rounding from batch to batch.
    """

    def __init__(self, judge: RewardFunction) -> None:
        self.judge = judge
        self.known: dict[str, float | None] = {}

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """One score a reply."""
        rows = zip(prompts, completions, *columns.values(), strict=True)
        keys = [json.dumps(row, sort_keys=True, default=repr) for row in rows]
        first = {key: place for place, key in reversed([*enumerate(keys)]) if key not in self.known}
        new = sorted(first.values())
        if new:
            arguments = ([values[place] for place in new] for values in (prompts, completions))
            more = {name: [values[place] for place in new] for name, values in columns.items()}
            scores = self.judge(*arguments, **more)
            self.known.update(zip((keys[place] for place in new), scores, strict=True))
        return [self.known[key] for key in keys]


def started_from(project: ProjectConfig, name: str) -> str:
    """The policy that a stage's training started from: a stage, the project's base model, or one of its own."""
    if (parent := parent_of(project, name)) is not None:
        return parent
    own, base = (replace(one, adapter=None) for one in (stage_settings(project, name), base_settings(project)))
    return BASE if own == base else own_base(name)


def _load(context: StageContext, name: str) -> tuple[PreTrainedModel, Codec]:
    """A policy with its own tokenizer: a finished stage, or a base model."""
    stage = next((one for one in policies_of(context.project) if name in (one, own_base(one))), None)
    return load(context.project, context.parents.get(name), stage)


def measure_policy(
    context: StageContext,
    prompts: Sequence[Prompt],
    name: str,
    reference: str | None,
    sets: Sequence[RetainedSet],
    judges: Mapping[str, RewardFunction],
) -> tuple[list[list[dict[str, Any]]], int, dict[str, list[float | None]]]:
    """What one policy does.

    Returns:
        Its replies to every prompt, with KL to its reference if it has one; how many prompts were cut; and its values
        on the rows of every set that is not to be lost.
    """
    project, settings = context.project, context.project.evaluate
    model, codec = _load(context, name)
    ids, cut = fitted(model, codec, [prompt.prompt for prompt in prompts], settings.max_new_tokens)
    replies = replies_to(project, model, codec, ids, settings.samples, name)
    kl: Sequence[Sequence[float | None]] = [[None] * len(row) for row in replies]
    if reference is not None:
        other, _ = _load(context, reference)
        kl = sequence_kl(model, other, ids, replies, settings.temperature or 1.0)
        del other
    limits = settings.max_new_tokens, settings.batch_size
    values = {one.name: measure(one, model, codec, judges, *limits) for one in sets}
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    rows = [
        [_row(reply, value) for reply, value in zip(row, values, strict=True)]
        for row, values in zip(replies, kl, strict=True)
    ]
    return rows, cut, values


def prefer(rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[str, str]], name: str, judge: EndpointJudge) -> None:
    """Have a judge compare sample with sample of every pair of policies, in place."""
    for policy, baseline in pairs:
        asked = [
            (row["prompt"], *(as_completion(row["prompt"], reply["text"]) for reply in two))
            for row in rows
            for two in zip(row["replies"][policy], row["replies"][baseline], strict=True)
        ]
        found = iter(judge.prefer(*(list(column) for column in zip(*asked, strict=True))))
        for row in rows:
            shares = [next(found) for _ in row["replies"][policy]]
            row.setdefault("preferences", {}).setdefault(name, {})[f"{policy} vs {baseline}"] = shares


def _row(reply: Completion, kl: float | None) -> dict[str, Any]:
    return {"text": reply.text, "tokens": len(reply.ids), "finished": reply.finished, "kl": kl, "scores": {}}


def score(
    replies: Sequence[Sequence[dict[str, Any]]], prompts: Sequence[Prompt], judges: Mapping[str, RewardFunction]
) -> None:
    """Let every judge score every reply, in place."""
    flat = [(prompt, reply) for prompt, row in zip(prompts, replies, strict=True) for reply in row]
    columns = columns_of([prompt.extra for prompt, _ in flat])
    texts = [prompt.prompt for prompt, _ in flat]
    completions = [as_completion(prompt.prompt, reply["text"]) for prompt, reply in flat]
    for name, judge in judges.items():
        for (_, reply), score in zip(flat, judge(texts, completions, **columns), strict=True):
            reply["scores"][name] = score
