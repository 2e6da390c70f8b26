"""What a kind of policy is: how its rows are read, how it is trained on demonstrations, and how it answers.

Each kind is one file of this folder with a class `KIND`, named by `model.policy`; the stages ask it for what differs
between kinds and know none of them by name. Its head is a line of `rlhf.models.tasks`.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.artifacts.open import OpenedModel
from rlhf.config.project import EvaluateConfig, ProjectConfig
from rlhf.data.prepare import Encode, Prepared
from rlhf.data.records import Encoded, Prompt, Record, Unusable
from rlhf.errors import UserError
from rlhf.models.labels import Classes
from rlhf.models.load import model_config
from rlhf.models.roles import Roles
from rlhf.policies.completion import Completion, row_seed

if TYPE_CHECKING:
    from rlhf.policies.base import RolesPolicy


class Encoder(NamedTuple):
    """How records become the columns that training reads."""

    encode: Encode
    settings: dict[str, Any]
    """What else decides the columns: limits, by name."""
    ahead: Callable[[list[Record]], None] | None = None
    """Works ahead on records to come."""


class Supervised(NamedTuple):
    """How `transformers.Trainer` trains a kind on demonstrations."""

    collator: Callable[[list[Mapping[str, Any]]], Mapping[str, Any]]
    """Rows of the encoded data as the batch that the model takes."""
    loss: Callable[..., Any] | None = None
    """`f(outputs, labels, num_items_in_batch)`; None takes the loss that the model computes."""
    metrics: Callable[[Any], dict[str, float]] | None = None
    """Of a `transformers.EvalPrediction`."""
    training_collator: Callable[[list[Mapping[str, Any]]], Mapping[str, Any]] | None = None
    """Makes the batches that are trained on, where they differ: rows are augmented, say."""


class Completed(NamedTuple):
    """What a policy answered to P prompts."""

    completions: list[list[Completion]]
    kl: list[list[float]] | None
    """KL to the reference of each completion, nats; None without a reference."""
    cut: int
    """Prompts of which only a part fitted the model's context."""


class PolicyKind(ABC):
    """A kind of policy, bound to a model.

    Args:
        opened: The model; its weights are not loaded.
    """

    def __init__(self, opened: OpenedModel) -> None:
        self.opened = opened

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.opened.tokenizer

    @cached_property
    def config(self) -> PretrainedConfig:
        """The config of the model's base."""
        return model_config(self.opened.source)

    # trained on demonstrations

    @property
    def augmentations(self) -> Collection[str]:
        """Names that `stages.sft.augment` may have: changes of training rows (`data.augment`)."""
        return ()

    @abstractmethod
    def demonstrations(self, args: Any) -> Encoder:
        """How records of `data.demonstrations` are encoded.

        Args:
            args: The sft stage's arguments.
        """

    def classes(self, data: Prepared, args: Any) -> Classes | None:
        """The classes that a new head tells apart; None where the task leaves no choice.

        Args:
            data: The encoded rows.
            args: The sft stage's arguments.

        Raises:
            UserError: The data cannot train such a head.
        """
        return None

    def supervised(self, model: PreTrainedModel, data: Prepared, args: Any) -> Supervised | None:
        """How it is trained on demonstrations; None where TRL's SFTTrainer does it.

        Args:
            model: The model with its head.
            data: The encoded rows.
            args: The sft stage's arguments.
        """
        return None

    def finish(self, model: Any, data: Prepared, args: Any) -> None:
        """Settle, in place, what demonstrations cannot teach, once they have been learned.

        Args:
            model: The trained model, an adapter included.
            data: The encoded rows.
            args: The sft stage's arguments.
        """
        return

    # trained online, and evaluated

    @abstractmethod
    def prompts(self, args: Any) -> Encoder:
        """How prompts are encoded for online training.

        Args:
            args: The settings of sampling (`policies.settings.SamplingSettings`).
        """

    @abstractmethod
    def inputs(self, rows: Iterable[Mapping[str, Any]]) -> Sequence[Any]:
        """Encoded prompts, with their column `extra`, as the policy takes them.

        Raises:
            UserError: A row is not for this model: its label is none of the model's classes, say.
        """

    @abstractmethod
    def policy(self, roles: Roles, settings: Any, fold: bool = True) -> RolesPolicy:
        """The policy that online training optimises.

        Args:
            roles: Its models.
            settings: How it is sampled (`policies.settings.SamplingSettings`).
            fold: Whether completions may share what they have in common.
        """

    @abstractmethod
    def complete(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: EvaluateConfig,
        *,
        samples: int,
        seed: int,
        label: str,
        reference: Callable[[], PreTrainedModel] | None = None,
        first: int = 0,
    ) -> Completed:
        """Answer prompts, for evaluation.

        Args:
            model: The policy.
            prompts: What it answers.
            settings: How it is sampled.
            samples: Completions a prompt.
            seed: Of the sampling.
            label: Words before the progress bar.
            reference: Loads what KL is measured to.
            first: Place of the first prompt among all, where these are some of them: a seed goes by the place.
        """

    def check_columns(self, columns: Iterable[Mapping[str, Any]], project: ProjectConfig, where: str) -> None:
        """Check, before anything trains, that the other columns of prompts are for the model that there will be.

        Args:
            columns: Those of each prompt.
            project: Its demonstrations say what the model will know.
            where: Which prompts they are, for the message.

        Raises:
            UserError: They are not.
        """
        return

    def refusal(self, prompt: Prompt) -> str | None:
        """Why this kind cannot take a prompt; None where it can."""
        try:
            self.prompts(None).encode(prompt)
        except Unusable as error:
            return error.reason
        return None


def policy_kind(opened: OpenedModel) -> PolicyKind:
    """The kind of policy that a model is, bound to it.

    Raises:
        UserError: The project has no such kind of policy.
    """
    name = opened.task.policy
    try:
        module: Any = importlib.import_module(f"rlhf.policies.{name}")
    except ModuleNotFoundError:
        raise UserError(f"model.policy: there is no policy of kind {name!r}") from None
    return module.KIND(opened)


def answered(
    kind: PolicyKind,
    policy: Any,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    batch_size: int,
    first: int = 0,
) -> Completed:
    """Answers of a policy whose actions come from logits (`policies.base.LogitsPolicy`), for evaluation.

    Args:
        kind: What it is.
        policy: The policy, with a reference where KL is wanted.
        prompts: What it answers.
        samples: Completions a prompt.
        seed: Of the sampling.
        batch_size: Sequences a forward pass.
        first: Place of the first prompt among all.
    """
    encode = kind.prompts(None).encode
    encoded = [_one(encode(prompt)) for prompt in prompts]
    rows = [{**row.columns, "extra": json.dumps(prompt.extra)} for row, prompt in zip(encoded, prompts, strict=True)]
    inputs = kind.inputs(rows)
    policy.eval()
    places = range(first, first + len(inputs))
    seeds = [[row_seed(seed, place, number) for number in range(samples)] for place in places]
    completions = policy.sample(inputs, seeds)
    cut = sum(row.truncated for row in encoded)
    if policy.roles.reference_model is None:
        return Completed(completions, None, cut)
    kl: list[list[float]] = []
    at_once = max(1, batch_size // samples)
    for start in range(0, len(inputs), at_once):
        rows_of = slice(start, start + at_once)
        packed = policy.pack(inputs[rows_of], completions[rows_of]).to(policy.device)
        kl += policy.kl(packed).view(-1, samples).tolist()
    return Completed(completions, kl, cut)


def _one(encoded: Encoded | list[Encoded]) -> Encoded:
    return encoded[0] if isinstance(encoded, list) else encoded
