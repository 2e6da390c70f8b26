"""A policy, loaded to answer prompts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from rlhf import processes
from rlhf.artifacts.open import OpenedModel, open_model, open_stage
from rlhf.config.project import ProjectConfig
from rlhf.data.prepare import evaluation_prompts
from rlhf.data.records import Prompt, Text, as_completion
from rlhf.errors import UserError
from rlhf.evaluation.shares import shared
from rlhf.models.settings import base_settings, stage_settings
from rlhf.policies.kinds import Completed, policy_kind
from rlhf.workflow import policies_of


def open_policy(project: ProjectConfig, folder: Path | None, stage: str | None = None) -> OpenedModel:
    """A policy, of which nothing is loaded yet.

    Args:
        project: The project.
        folder: A finished stage's folder; None for a base model.
        stage: Whose base model that is, where it may have one of its own; None for the project's.
    """
    config = base_settings(project) if stage is None else stage_settings(project, stage)
    return open_model(config) if folder is None else open_stage(folder, config)


def check_prompts(project: ProjectConfig, prompts: Sequence[Prompt], base: Path | None) -> None:
    """Check, before anything trains, that all policies can take the prompts: the chat template of each, say.

    A training row that a template refuses is dropped; prompts are compared on, so that none is left out here.

    Args:
        project: The project.
        prompts: Those to compare policies on.
        base: Folder of the stage that made the base model, where one did.

    Raises:
        UserError: A policy refuses some; the message names the first.
    """
    own = [name for name in policies_of(project) if project.stage(name).model is not None]
    opened = [OpenedModel(base_settings(project), base), *(open_policy(project, None, name) for name in own)]
    for kind in map(policy_kind, opened):
        kind.check_columns([prompt.extra for prompt in prompts], project, "the prompts to evaluate on")
        refused = [(prompt, why) for prompt in prompts if (why := kind.refusal(prompt)) is not None]
        if refused:
            first, why = refused[0]
            raise UserError(
                f"{first.origin}: no reply can be asked for: {why}; so it is with {len(refused)} of the {len(prompts)} "
                "prompts to evaluate on: take them out, or name others in data.prompts"
            )


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
    prompts = evaluation_prompts(project, count)
    texts = _texts(project, open_policy(project, folder, stage), policy, prompts)
    gc.collect()  # the model
    asked = [prompt.prompt for prompt in prompts]
    return asked, [as_completion(prompt, text) for prompt, text in zip(asked, texts, strict=True)]


def _texts(project: ProjectConfig, opened: OpenedModel, name: str, prompts: Sequence[Prompt]) -> list[str]:
    """A completion of each prompt; processes share the prompts."""
    model = opened.policy()

    def written(first: int, last: int) -> list[str]:
        completed = complete(project, opened, model, prompts[first:last], 1, name, first=first)
        return [row[0].text for row in completed.completions]

    return shared(0, len(prompts), written)


def complete(
    project: ProjectConfig,
    opened: OpenedModel,
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    samples: int,
    label: str,
    reference: Callable[[], PreTrainedModel] | None = None,
    first: int = 0,
) -> Completed:
    """Answer prompts as `evaluate:` says.

    Args:
        project: Its `evaluate` section and seed count.
        opened: What the policy is, and its tokenizer.
        model: The policy.
        prompts: What is answered.
        samples: Completions a prompt.
        label: Words before the progress bar, which the main process shows.
        reference: Loads what KL is measured to.
        first: Place of the first prompt among all, where these are some of them.
    """
    return policy_kind(opened).complete(
        model, prompts, project.evaluate, samples=samples, seed=project.seed,
        label=f"{label} replies" if processes.is_main() else "", reference=reference, first=first,
    )  # fmt: skip
