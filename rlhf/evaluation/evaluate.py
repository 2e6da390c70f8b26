"""The evaluate stage: every policy replies to the same held-out prompts, and every judge scores the replies."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf.config.project import ProjectConfig
from rlhf.data.prepare import evaluation_prompts
from rlhf.data.records import Prompt, Text
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError, unknown_name
from rlhf.evaluation.compare import comparison_pairs
from rlhf.evaluation.completions import check_prompts, fitted, load, replies_to
from rlhf.evaluation.regressions import RETAINED
from rlhf.evaluation.retain import Retained, measure, read_retained, write
from rlhf.models.settings import base_settings, stage_settings
from rlhf.policies.completion import Completion, as_completion
from rlhf.policies.kl import sequence_kl
from rlhf.rewards import RewardFunction, columns_of
from rlhf.rewards.endpoint import EndpointJudge
from rlhf.rewards.load import load_judges, load_rewards
from rlhf.stages import Metrics, StageContext, is_base, own_base, parent_of, policies_of


def prepare(context: StageContext) -> None:
    """Hold, before anything trains, that there will be prompts to reply to and somebody to judge the replies."""
    project = context.project
    prompts = evaluation_prompts(project, project.evaluate.prompts)
    check_prompts(context, prompts)
    column = project.evaluate.group_by
    if column is not None and not any(column in prompt.extra for prompt in prompts):
        names = {name for prompt in prompts for name in prompt.extra}
        raise UserError(f"evaluate.group_by: no prompt has a column {column!r}; {unknown_name(column, names)}")
    comparing = load_judges(project)
    if not {**load_rewards(project), **comparing} and "reward" not in project.stages:
        raise UserError(
            f"{project.path}: nothing to judge replies with: add a reward stage, or a function, model or endpoint to "
            "rewards:"
        )
    for judge in comparing.values():
        judge.check()
    _try_functions(project, prompts[:2])
    read_retained(project)


def _try_functions(project: ProjectConfig, prompts: Sequence[Prompt]) -> None:
    """Let the functions that judge score a reply and an empty one, which a policy may give too.

    Raises:
        UserError: One fails, or returns something else than a score a reply.
    """
    functions = load_rewards(project, names=[name for name, one in project.rewards.items() if one.function])
    for text, kind in (("A reply.", "a reply"), ("", "an empty reply")):
        try:
            _score([[{"text": text, "scores": {}}] for _ in prompts], prompts, functions)
        except UserError as error:
            raise UserError(f"{error} (tried on {kind} to the first prompts)") from None


def evaluate(context: StageContext) -> Metrics:
    """Write `samples.jsonl`: one line a prompt, with each policy's replies, their scores, lengths and KL.

    Judges that compare add `preferences` to a line; `retained.jsonl` has what no policy may lose.
    """
    project = context.project
    judges = {name: Remembering(judge) for name, judge in load_rewards(project, context.parents).items()}
    comparing = load_judges(project)
    references = {name: _started_from(project, name) for name in policies_of(project)}
    policies = list(dict.fromkeys(["base", *(one for one in references.values() if is_base(one)), *references]))
    prompts = evaluation_prompts(project, project.evaluate.prompts)
    rows: list[dict[str, Any]] = [
        {"index": index, "prompt": prompt.prompt, "columns": prompt.extra, "replies": {}}
        for index, prompt in enumerate(prompts)
    ]
    sets = read_retained(project)
    cut, kept = 0, {}
    for name in policies:
        replies, cut, kept[name] = _replies(context, prompts, name, references.get(name), sets, judges)
        _score(replies, prompts, judges)
        for row, of_prompt in zip(rows, replies, strict=True):
            row["replies"][name] = of_prompt
    if sets:
        write(context.directory / RETAINED, sets, kept)
    for name, judge in comparing.items():
        _prefer(rows, comparison_pairs(policies, references), name, judge)
    with (context.directory / "samples.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {
        "policies": policies, "judges": [*judges, *comparing], "parents": references, "references": references,
        "prompts": len(prompts), "prompts_cut": cut, "samples": len(rows[0]["replies"]["base"]),
        "group_by": project.evaluate.group_by,
        "comparing": {name: judge.report() for name, judge in comparing.items()},
    }  # fmt: skip


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


def _started_from(project: ProjectConfig, name: str) -> str:
    """The policy that a stage's training started from: a stage, the project's base model, or one of its own."""
    if (parent := parent_of(project, name)) is not None:
        return parent
    own, base = (replace(one, adapter=None) for one in (stage_settings(project, name), base_settings(project)))
    return "base" if own == base else own_base(name)


def _load(context: StageContext, name: str) -> tuple[PreTrainedModel, Codec]:
    """A policy with its own tokenizer: a finished stage, or a base model."""
    stage = next((one for one in policies_of(context.project) if name in (one, own_base(one))), None)
    return load(context.project, context.parents.get(name), stage)


def _replies(
    context: StageContext,
    prompts: Sequence[Prompt],
    name: str,
    reference: str | None,
    sets: Sequence[Retained],
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
    kl: list[list[float | None]] = [[None] * len(row) for row in replies]
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


def _prefer(rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[str, str]], name: str, judge: EndpointJudge) -> None:
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


def _score(
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
