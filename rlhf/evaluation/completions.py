"""A policy, loaded to complete prompts."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from rlhf.artifacts.open import open_model, open_stage
from rlhf.config.project import ProjectConfig
from rlhf.data.prepare import evaluation_prompts
from rlhf.data.records import Prompt, Text, Unusable
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models.load import context_length
from rlhf.models.settings import base_settings, stage_settings
from rlhf.models.tokenizer import load_tokenizer
from rlhf.policies.completion import Completion, as_completion
from rlhf.policies.sample import sample
from rlhf.workflow import policies_of


def load(project: ProjectConfig, folder: Path | None, stage: str | None = None) -> tuple[PreTrainedModel, Codec]:
    """A policy on the device, held against its probe, with its tokenizer.

    Args:
        project: The project.
        folder: A finished stage's folder; None for a base model.
        stage: Whose base model that is, where it may have one of its own; None for the project's.

    Raises:
        UserError: It cannot be loaded, or is not what the stage left.
    """
    config = base_settings(project) if stage is None else stage_settings(project, stage)
    opened = open_model(config) if folder is None else open_stage(folder, config)
    return opened.policy(), Codec(opened.tokenizer)


def prompt_room(model: PreTrainedModel, max_new_tokens: int) -> int:
    """Most tokens of a prompt that leave room for a completion; of a longer prompt the end is kept.

    Raises:
        UserError: None are left.
    """
    limit = context_length(model.config)
    if limit is not None and limit <= max_new_tokens:
        raise UserError(f"evaluate.max_new_tokens: {max_new_tokens} leave no room for a prompt in a context of {limit}")
    return sys.maxsize if limit is None else limit - max_new_tokens


def check_prompts(project: ProjectConfig, prompts: Sequence[Prompt], base: Path | None) -> None:
    """Check, before anything trains, that the chat templates of all policies take the prompts.

    A training row that a template refuses is dropped; prompts are compared on, so that none is left out here.

    Args:
        project: The project.
        prompts: Those to compare policies on.
        base: Folder of the stage that made the base model, where one did.

    Raises:
        UserError: A template refuses some; the message names the first.
    """
    own = [name for name in policies_of(project) if project.stage(name).model is not None]
    tokenizers = [load_tokenizer(base_settings(project), base)]
    tokenizers += [load_tokenizer(stage_settings(project, name)) for name in own]
    for codec in map(Codec, tokenizers):
        refused = [(prompt, why) for prompt in prompts if (why := _refusal(codec, prompt.prompt)) is not None]
        if refused:
            first, why = refused[0]
            raise UserError(
                f"{first.origin}: no reply can be asked for: {why}; so it is with {len(refused)} of the {len(prompts)} "
                "prompts to evaluate on: take them out, or name others in data.prompts"
            )


def _refusal(codec: Codec, prompt: Text) -> str | None:
    try:
        return None if codec.prompt(prompt) else "it has no token"
    except Unusable as error:
        return error.reason


def fitted(
    model: PreTrainedModel, codec: Codec, prompts: Sequence[Text], max_new_tokens: int
) -> tuple[list[list[int]], int]:
    """Token ids of prompts, cut to their end where they leave no room for a completion; and how many were cut."""
    room = prompt_room(model, max_new_tokens)
    try:
        ids = [codec.prompt(prompt) for prompt in prompts]
    except Unusable as error:
        raise UserError(f"a prompt to reply to: {error.reason}; take it out, or name others in data.prompts") from None
    return [row[-room:] for row in ids], sum(len(row) > room for row in ids)


def held_out_completions(
    project: ProjectConfig, policy: str, folder: Path | None, stage: str | None, count: int
) -> tuple[list[Text], list[Text]]:
    """Held-out prompts, and a completion of each by a policy.

    Args:
        project: The project.
        policy: Its name.
        folder: Its folder; None for a base model.
        stage: The stage whose settings load it.
        count: Most prompts.
    """
    prompts = [prompt.prompt for prompt in evaluation_prompts(project, count)]
    model, codec = load(project, folder, stage)
    ids, _ = fitted(model, codec, prompts, project.evaluate.max_new_tokens)
    sampled = sample_completions(project, model, codec, ids, 1, policy)
    del model
    gc.collect()
    return prompts, [as_completion(prompt, row[0].text) for prompt, row in zip(prompts, sampled, strict=True)]


def sample_completions(
    project: ProjectConfig, model: PreTrainedModel, codec: Codec, ids: Sequence[Sequence[int]], samples: int, label: str
) -> list[list[Completion]]:
    """Sample completions as `evaluate:` says.

    Args:
        project: Its `evaluate` section and seed count.
        model: The policy.
        codec: Its tokenizer.
        ids: Token ids of each prompt.
        samples: Completions a prompt.
        label: Words before the progress bar.
    """
    settings = project.evaluate
    return sample(
        model, codec.tokenizer, ids, samples=samples, max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature, batch_size=settings.batch_size, seed=project.seed, label=f"{label} replies",
    )  # fmt: skip
