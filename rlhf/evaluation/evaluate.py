"""The evaluate stage: every policy replies to the same held-out prompts, and every judge scores the replies."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf.config import ProjectConfig
from rlhf.data.prepare import evaluation_prompts
from rlhf.data.records import Prompt
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.device import device
from rlhf.models.load import context_length, load_policy, source_of
from rlhf.models.settings import base_settings
from rlhf.models.tokenizer import load_tokenizer
from rlhf.rewards import RewardFunction
from rlhf.rewards.load import load_rewards
from rlhf.rollout.kl import sequence_kl
from rlhf.rollout.sample import Reply, as_completion, sample
from rlhf.stages import Metrics, StageContext, parent_of, policies_of

_ARGUMENTS = {"prompts", "completions"}
"""What a judge is called with besides columns; a column of this name cannot be handed on."""


def prepare(context: StageContext) -> None:
    """Hold, before anything trains, that there will be prompts to reply to and somebody to judge the replies."""
    project = context.project
    evaluation_prompts(project, project.evaluate.prompts)
    judges = load_rewards(project)
    if not judges and "reward" not in project.stages:
        raise UserError(f"{project.path}: nothing to judge replies with: add a reward stage or a function to rewards:")


def evaluate(context: StageContext) -> Metrics:
    """Write `samples.jsonl`: one line a prompt, with each policy's replies, their scores, lengths and KL."""
    project = context.project
    judges = load_rewards(project, context.parents.get("reward"))
    folders = {"base": context.parents.get("base"), **{name: context.parents[name] for name in policies_of(project)}}
    references = {name: parent_of(project, name) or "base" for name in folders if name != "base"}
    prompts = evaluation_prompts(project, project.evaluate.prompts)
    rows: list[dict[str, Any]] = [
        {"index": index, "prompt": prompt.prompt, "columns": prompt.extra, "replies": {}}
        for index, prompt in enumerate(prompts)
    ]
    cut = 0
    for name in folders:
        replies, cut = _replies(project, prompts, name, folders, references.get(name))
        _score(replies, prompts, judges)
        for row, of_prompt in zip(rows, replies, strict=True):
            row["replies"][name] = of_prompt
    with (context.directory / "samples.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {
        "policies": list(folders), "judges": list(judges), "parents": references, "references": references,
        "prompts": len(prompts), "prompts_cut": cut, "samples": len(rows[0]["replies"]["base"]),
    }  # fmt: skip


def _replies(
    project: ProjectConfig,
    prompts: Sequence[Prompt],
    name: str,
    folders: Mapping[str, Path | None],
    reference: str | None,
) -> tuple[list[list[dict[str, Any]]], int]:
    """One policy's replies to every prompt, with KL to its reference if it has one; and how many prompts were cut."""
    model, codec = _load(project, folders[name])
    settings = project.evaluate
    ids = [codec.prompt(prompt.prompt) for prompt in prompts]
    room = prompt_room(model, settings.max_new_tokens)
    cut = sum(len(row) > room for row in ids)
    ids = [row[-room:] for row in ids]
    replies = sample(
        model, codec.tokenizer, ids, samples=settings.samples, max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature, batch_size=settings.batch_size, seed=project.seed, label=f"{name} replies",
    )  # fmt: skip
    kl: list[list[float | None]] = [[None] * len(row) for row in replies]
    if reference is not None:
        other, _ = _load(project, folders[reference])
        kl = sequence_kl(model, other, ids, replies, settings.temperature or 1.0)
        del other
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    rows = [
        [_row(reply, value) for reply, value in zip(row, values, strict=True)]
        for row, values in zip(replies, kl, strict=True)
    ]
    return rows, cut


def prompt_room(model: PreTrainedModel, max_new_tokens: int) -> int:
    """Most tokens of a prompt that leave room for a reply; of a longer one the end is kept."""
    limit = context_length(model.config)
    if limit is not None and limit <= max_new_tokens:
        raise UserError(f"evaluate.max_new_tokens: {max_new_tokens} leave no room for a prompt in a context of {limit}")
    return sys.maxsize if limit is None else limit - max_new_tokens


def _row(reply: Reply, kl: float | None) -> dict[str, Any]:
    return {"text": reply.text, "tokens": len(reply.ids), "finished": reply.finished, "kl": kl, "scores": {}}


def _load(project: ProjectConfig, folder: Path | None) -> tuple[PreTrainedModel, Codec]:
    config = base_settings(project)
    tokenizer = load_tokenizer(config, folder)
    model = load_policy(source_of(config, folder), config, tokenizer)
    if folder is not None:
        probe.check_folder(model, folder)
    return model.to(device()), Codec(tokenizer)


def _score(
    replies: Sequence[Sequence[dict[str, Any]]], prompts: Sequence[Prompt], judges: Mapping[str, RewardFunction]
) -> None:
    """Let every judge score every reply, in place."""
    flat = [(prompt, reply) for prompt, row in zip(prompts, replies, strict=True) for reply in row]
    columns = {
        key: [prompt.extra.get(key) for prompt, _ in flat] for key in {k for p in prompts for k in p.extra} - _ARGUMENTS
    }
    texts = [prompt.prompt for prompt, _ in flat]
    completions = [as_completion(prompt.prompt, reply["text"]) for prompt, reply in flat]
    for name, judge in judges.items():
        for (_, reply), score in zip(flat, judge(texts, completions, **columns), strict=True):
            reply["scores"][name] = score
