"""Causal language models as policies: the input is a prompt, an action is a token.

How they sample stands beside this file: `sampler` (transformers, with its `cache`), `vllm`, and `sampling_check`, which
tries how a model can be sampled. Completions of a prompt share its computation where the model allows it
(`rlhf.prefix_sharing`).
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.project import EvaluateConfig
from rlhf.data.records import Encoded, Prompt, Text, Unusable
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.models.load import context_length
from rlhf.models.roles import Roles
from rlhf.policies.base import RolesPolicy, like_sizes
from rlhf.policies.completion import Completion, decoded
from rlhf.policies.kinds import Completed, Encoder, PolicyKind
from rlhf.policies.kl import sequence_kl
from rlhf.policies.sample import sample, stop_ids
from rlhf.policies.sampler import PolicySampler, Sampler
from rlhf.policies.sampling_check import batching_of
from rlhf.policies.settings import SamplingSettings
from rlhf.policies.vllm.sampler import VllmSampler
from rlhf.prefix_sharing.forward import last_hidden
from rlhf.prefix_sharing.head import completion_log_probs
from rlhf.prefix_sharing.layout import Folded, lay_out
from rlhf.prefix_sharing.support import folding_check, why_not, widest


@dataclass(frozen=True)
class PromptRow:
    """A prompt that training completes."""

    ids: list[int]
    prompt: Text
    columns: dict[str, Any]
    ending: Sequence[int] = ()
    """What follows the text of a completion (`Codec.ending`); the end token if empty."""


def prompt_rows(rows: Iterable[Mapping[str, Any]], codec: Codec) -> list[PromptRow]:
    """Prompts as the ppo stage encoded them, with their columns and what ends a completion of theirs.

    Args:
        rows: `prompt_ids`, and `prompt` and `extra` as JSON.
        codec: The policy's tokenizer; the ending is that of a text or of a turn in a conversation.
    """
    endings: dict[type, list[int]] = {}
    prompts = []
    for row in rows:
        prompt = json.loads(row["prompt"])
        if type(prompt) not in endings:
            endings[type(prompt)] = codec.ending(prompt)
        prompts.append(PromptRow(row["prompt_ids"], prompt, json.loads(row["extra"]), endings[type(prompt)]))
    return prompts


class CausalLMPolicy(RolesPolicy):
    """A causal language model that online training optimises; implements `rlhf.policies.protocol.Policy`.

    Args:
        roles: Policy, critic, reference and maybe the reward model.
        tokenizer: Theirs.
        settings: How it is sampled.
        sampler: What samples; the one that the settings name if not given.
        fold: Whether completions may share their prompt's computation. Where the model cannot, they never do.
    """

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        sampler: Sampler | None = None,
        fold: bool = True,
    ) -> None:
        super().__init__(roles)
        self.tokenizer, self.settings = tokenizer, settings
        self._given_sampler = sampler
        self.unfolded = "fold is off" if not fold else why_not(roles.base) or folding_check(roles.base.base_model)
        """Why each completion has its prompt to itself; None where they share it."""
        self._widest = widest(roles.base)

    @property
    def widest(self) -> int | None:
        """Most tokens of a row that completions share; 0 where each has its prompt to itself."""
        return 0 if self.unfolded else self._widest

    @functools.cached_property
    def sampler(self) -> Sampler:
        """What samples, made when it is first needed: by then the weights are on their device."""
        if self._given_sampler is not None:
            return self._given_sampler
        settings, stops = self.settings, stop_ids(self.roles.base, self.tokenizer)
        if settings.sampler == "vllm":
            return VllmSampler(self.roles, stops, settings, self.folder)
        return PolicySampler(
            self.roles, stops, self._pad, settings.max_new_tokens, settings.temperature,
            settings.sampling_batch_size, batching_of(self.roles.base),
        )  # fmt: skip

    def close(self) -> None:
        """End the server that has sampled, if one has."""
        sampler = vars(self).get("sampler")
        if isinstance(sampler, VllmSampler):
            sampler.close()

    @property
    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def notice(self) -> str | None:
        """Why completions do not share their prompt's computation, where they do not."""
        return None if self.unfolded is None else f"each reply has its prompt to itself: {self.unfolded}"

    @property
    def exact_log_probs(self) -> bool:
        """Whether the sampler's log-probabilities can stand for a forward pass's."""
        return self.sampler.exact_log_probs

    @property
    def mismatch_hint(self) -> str:
        """What may be at fault where log-probabilities differ that must be equal."""
        cause = "it computes other numbers where replies share a row (set fold: false)"
        if self.unfolded is not None:
            cause = "token by token and as a whole it computes other numbers"
        return f"{type(self.roles.base).__name__} is at fault, as {cause}"

    # collecting a rollout

    def sample(self, inputs: Sequence[PromptRow], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """For each prompt one completion a seed, with their text."""
        return decoded(self.sampler([row.ids for row in inputs], seeds), self.tokenizer)

    @torch.no_grad()
    def own_scores(
        self, inputs: Sequence[PromptRow], completions: Sequence[Sequence[Completion]], batch_size: int
    ) -> list[float]:
        """Scores by the reward adapter on the policy's own base, on the sampled tokens themselves.

        A completion that was cut gets the end that every completion had in the reward model's training, so that the
        score is read at the same token. Of a sequence that is longer than the model's context the end is cut.
        """
        limit = context_length(self.config)
        closed = [
            [
                closed_completion(
                    completion,
                    row.ending or [self.tokenizer.eos_token_id],
                    None if limit is None else limit - len(row.ids),
                )
                for completion in group
            ]
            for row, group in zip(inputs, completions, strict=True)
        ]
        samples = len(completions[0])
        scores = torch.zeros(len(inputs) * samples)
        sizes = [self.size(row, group) for row, group in zip(inputs, closed, strict=True)]
        for chosen in like_sizes(sizes, max(1, batch_size // samples)):
            rows = torch.tensor([p * samples + s for p in chosen for s in range(samples)])
            packed = self.pack([inputs[p] for p in chosen], [closed[p] for p in chosen])
            scores[rows] = self.scores(packed.to(self.device)).cpu()
        return scores.tolist()

    # forward passes

    def size(self, input: PromptRow, completions: Sequence[Completion]) -> int:
        """Tokens of a prompt and its completions, the prompt once."""
        return len(input.ids) + sum(len(completion.ids) for completion in completions)

    def pack(self, inputs: Sequence[PromptRow], completions: Sequence[Sequence[Completion]]) -> Folded:
        """Prompts with their completions, which share a row where the model allows it."""
        ids = [[completion.ids for completion in group] for group in completions]
        return lay_out([row.ids for row in inputs], ids, self._pad, self.widest)

    def log_probs(self, packed: Folded, entropies: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log π of each token under the sampling temperature and, if asked for, its entropy; [B, T]."""
        with self.roles.policy_model() as model:
            return completion_log_probs(model, packed, self.settings.temperature, entropies)

    @torch.no_grad()
    def reference_log_probs(self, packed: Folded) -> torch.Tensor:
        """Log π_ref of each token, [B, T]."""
        with self.roles.reference() as model:
            return completion_log_probs(model, packed, self.settings.temperature)[0]

    def values(self, packed: Folded) -> torch.Tensor:
        """The critic's value before each token and after the last, [B, T + 1]."""
        with self.roles.critic_backbone() as backbone:
            hidden = last_hidden(backbone, packed)
        states = hidden.flatten(0, 1)[packed.states_BU.flatten()]
        return self.roles.value(states).view(packed.states_BU.shape)

    @torch.no_grad()
    def scores(self, packed: Folded) -> torch.Tensor:
        """The reward adapter's score of each sequence, read at its last token, [B]."""
        with self.roles.reward_backbone() as backbone:
            hidden = last_hidden(backbone, packed)
        return self.roles.score(hidden.flatten(0, 1)[packed.states_BU[:, -1]])

    def check_scores(self, folder: Path, stored: Mapping[str, Any] | None) -> None:
        """Check that the reward adapter on the policy's base scores as the reward model did when it was saved.

        Args:
            folder: The reward stage's.
            stored: Its probe; None where it has none.

        Raises:
            UserError: It does not.
        """
        if not stored:
            return
        for ids, saved in zip(stored["ids"], stored["outputs"], strict=True):
            packed = lay_out([ids[:-1]], [[ids[-1:]]], self._pad)
            score = self.scores(packed.to(self.device)).item()
            if not probe.agrees(saved, score, stored["dtype"]):
                raise UserError(
                    f"{folder}: on the policy's base the reward adapter scores {score:.4f}; saved, it scored "
                    f"{saved:.4f}"
                )


def closed_completion(completion: Completion, ending: Sequence[int], room: int | None) -> Completion:
    """A completion as the reward model read it in training: its text, cut to the room there is, and the ending.

    Args:
        completion: Its last tokens may be a part of the ending, which is not written twice.
        ending: What follows the text.
        room: Most tokens of text and ending together; None for no limit.
    """
    text = list(completion.ids)
    if completion.finished:
        written = (size for size in range(len(ending), 0, -1) if text[-size:] == list(ending[:size]))
        text = text[: -next(written, 1)]
    return replace(completion, ids=[*text[: None if room is None else max(0, room - len(ending))], *ending])


class CausalLMKind(PolicyKind):
    """Language models that go on with a prompt; TRL trains them on demonstrations."""

    def demonstrations(self, args: Any) -> Encoder:
        """Prompt and completion as one sequence, with loss on the completion."""
        codec = Codec(self.tokenizer, args.max_length, args.truncation_mode)
        return Encoder(codec.demonstration, {"max_length": args.max_length, "keep": codec.keep}, codec.ahead)

    def prompts(self, args: Any) -> Encoder:
        """Token ids of each prompt; those that leave no room for a completion are dropped."""
        limit = None if args is None else args.max_length
        room = None if limit is None else limit - args.max_new_tokens
        if room is not None and room < 1:
            raise UserError(f"max_new_tokens: {args.max_new_tokens} leave no room for a prompt within {limit} tokens")
        codec = Codec(self.tokenizer, limit)

        def encode(record: Prompt) -> Encoded:
            ids = codec.prompt(record.prompt)
            if not ids:
                raise Unusable("prompt without a token")
            if room is not None and len(ids) > room:
                raise Unusable("prompt leaves no room for a reply within max_length")
            return Encoded({"prompt_ids": ids, "prompt": json.dumps(record.prompt)})

        return Encoder(encode, {"room": room})

    def inputs(self, rows: Iterable[Mapping[str, Any]]) -> Sequence[PromptRow]:
        """Prompts, with what ends a completion of theirs."""
        return prompt_rows(rows, Codec(self.tokenizer))

    def policy(self, roles: Roles, settings: SamplingSettings, fold: bool = True) -> CausalLMPolicy:
        """The policy that online training optimises."""
        return CausalLMPolicy(roles, self.tokenizer, settings, fold=fold)

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
        """Sample completions; of a prompt that leaves no room for one, the end is kept."""
        ids, cut = fitted(model, Codec(self.tokenizer), [each.prompt for each in prompts], settings.max_new_tokens)
        sampled = sample(
            model, self.tokenizer, ids, samples=samples, max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature, batch_size=settings.batch_size, seed=seed, label=label,
            first=first,
        )  # fmt: skip
        if reference is None:
            return Completed(sampled, None, cut)
        return Completed(sampled, sequence_kl(model, reference(), ids, sampled, settings.temperature or 1.0), cut)


KIND = CausalLMKind


def prompt_room(model: PreTrainedModel, max_new_tokens: int) -> int:
    """Most tokens of a prompt that leave room for a completion; of a longer prompt the end is kept.

    Raises:
        UserError: None are left.
    """
    limit = context_length(model.config)
    if limit is not None and limit <= max_new_tokens:
        raise UserError(f"evaluate.max_new_tokens: {max_new_tokens} leave no room for a prompt in a context of {limit}")
    return sys.maxsize if limit is None else limit - max_new_tokens


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
