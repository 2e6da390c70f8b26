"""Samples from transformers models: each prompt is computed once, finished completions leave the batch.

A completion depends on its seed and its prompt alone (up to rounding): not on what it is sampled together with, nor on
how many processes there are. Each step of a completion spends one uniform number of its own stream, which inverting the
cumulative distribution turns into a token.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from rlhf import processes, progress
from rlhf.models.roles import Roles
from rlhf.policies import cache as caches
from rlhf.policies.completion import Completion

_PREFILL_TOKENS = 1024
"""Prompt tokens computed at once: enough to keep the processor busy, few enough that like lengths stand together."""

_KEPT = ("past_key_values", "cache_params", "state")
"""Names under which models give, and take, what they keep of the tokens so far."""

_DROP_SHARE = 0.125
"""Share of the running batch that must have finished before its rows are dropped: dropping copies the cache."""


class Batching(Enum):
    """Which rows a model can be sampled with at once; see `sampling_check.batching_of`."""

    MIXED = "prompts of different lengths"
    """Shorter prompts have padding before them, which a mask hides."""
    EQUAL = "prompts of one length"
    """The model counts padding as tokens, or sees it."""
    WHOLE = "prompts of one length, every completion with its prompt, to the end of the last"
    """What the model keeps of its tokens can be neither repeated nor thinned out from outside."""


class Sampler(Protocol):
    """Whatever turns prompts into completions."""

    @property
    def exact_log_probs(self) -> bool:
        """Whether its log-probabilities are those of training's forward pass.

        Those of another engine, or of weights below float32, are close and not equal.
        """
        ...

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """For each prompt one completion a seed.

        Raises:
            SamplerFailed: What samples has failed.
        """
        ...


@dataclass(frozen=True)
class TransformersSampler:
    """Samples from a transformers causal language model in this process."""

    model: Any
    """The policy, in evaluation mode."""
    stop_ids: Sequence[int]
    """Tokens that end a completion."""
    pad_id: int
    """Token that fills prompts up on the left."""
    max_new_tokens: int
    """Longest completion, in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token. No top-k, no top-p."""
    batch_size: int = 64
    """Completions sampled at once."""
    batching: Batching = Batching.MIXED
    """Which prompts may be sampled at once."""
    label: str | None = None
    """Words before a progress bar; None shows none."""

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """Sample.

        Args:
            prompts: Token ids of each prompt, at least one token.
            seeds: For each prompt the seeds of its completions, as many for each.
        """
        samples = len(seeds[0])
        results: list[list[Completion]] = [[] for _ in prompts]
        with progress.bar(self.label or "sampling", len(prompts), "prompts", shown=bool(self.label)) as bar:
            for chosen in self._batches(prompts, max(1, self.batch_size // samples)):
                noise_BT = self._noise([seed for index in chosen for seed in seeds[index]])
                done = self._batch([prompts[index] for index in chosen], samples, noise_BT)
                for place, index in enumerate(chosen):
                    results[index] = done[place * samples : (place + 1) * samples]
                progress.count_tokens(processes.count() * sum(len(completion.ids) for completion in done))
                bar.update(len(chosen))
        return results

    def _batches(self, prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
        """Indices of the prompts that are sampled at once, shortest first."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        mixed = self.batching is Batching.MIXED
        for _, alike in itertools.groupby(order, key=lambda index: None if mixed else len(prompts[index])):
            group = list(alike)
            yield from (group[begin : begin + size] for begin in range(0, len(group), size))

    def _noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """Uniform numbers of each completion's own stream, [B, T].

        They are float64, and on the CPU where the model's device has no float64.
        """
        draws = [
            torch.rand(self.max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        return torch.stack(draws).to("cpu" if self.model.device.type == "mps" else self.model.device)

    def _batch(self, prompts: Sequence[Sequence[int]], samples: int, noise_BT: torch.Tensor) -> list[Completion]:
        """Completions of prompts sorted by length, `samples` for each."""
        droppable = self.batching is not Batching.WHOLE
        kept, logits_BV, lengths_B = (self._prefill if droppable else self._prefill_whole)(prompts, samples)
        running = [_Running() for _ in range(len(noise_BT))]
        active = torch.arange(len(noise_BT), device=noise_BT.device)
        stops = torch.tensor(sorted(self.stop_ids), device=self.model.device)
        width = int(lengths_B.max())
        for step in range(self.max_new_tokens):
            tokens_B, log_probs_B, entropies_B = self._draw(logits_BV, noise_BT[active, step])
            ended_B = torch.isin(tokens_B, stops)
            drawn = (active, tokens_B, log_probs_B, entropies_B, ended_B)
            for row, *values in zip(*(tensor.tolist() for tensor in drawn), strict=True):
                running[row].add(*values)
            if step + 1 == self.max_new_tokens:
                break
            going = torch.tensor([not running[row].finished for row in active.tolist()], device=active.device)
            if not going.any():
                break
            if droppable and (~going).sum() >= _DROP_SHARE * len(going):
                rows = going.nonzero().squeeze(1)
                self._thin_out(kept, rows)
                active, tokens_B = active[rows], tokens_B[rows]
            logits_BV, kept = self._step(kept, tokens_B, lengths_B[active], width, step)
        return [written.completion() for written in running]

    def _prefill(
        self, prompts: Sequence[Sequence[int]], samples: int
    ) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
        """The prompts' cache, repeated for each sample; logits of the first token [B, V]; prompt lengths [B]."""
        parts, logits = [], []
        for part in self._parts(prompts):
            ids, mask = pad_left(part, self.pad_id, self.model.device)
            cache = DynamicCache(config=self.model.config)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits.append(self._forward(ids, None if mask.all() else mask, positions, {self._name: cache})[0])
            parts.append(cache)
        rows_B = torch.arange(len(prompts), device=self.model.device).repeat_interleave(samples)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.model.device)
        cache = caches.join(parts, rows_B, self.max_new_tokens)
        return {self._name: cache}, torch.cat(logits)[rows_B], lengths[rows_B]

    def _prefill_whole(
        self, prompts: Sequence[Sequence[int]], samples: int
    ) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
        """The same, every sample with its prompt; what the model keeps, in a cache or beside it, is its own affair."""
        ids = torch.tensor([prompt for prompt in prompts for _ in range(samples)], device=self.model.device)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        takes_ours = getattr(self.model, "_supports_default_dynamic_cache", lambda: True)()
        ours = {self._name: DynamicCache(config=self.model.config)} if takes_ours else {}
        logits_BV, kept = self._forward(ids, None, positions, ours)
        return kept, logits_BV, torch.full((len(ids),), ids.shape[1], device=ids.device)

    def _parts(self, prompts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
        """Prompts that are computed together: of like length, so that little is padding.

        Of equal length, without any, where a state runs over all tokens: it would run over the padding too.
        """
        recurrent = caches.is_recurrent(DynamicCache(config=self.model.config))
        parts: list[list[Sequence[int]]] = []
        for prompt in prompts:
            full = not parts or (len(parts[-1]) + 1) * len(prompt) > _PREFILL_TOKENS
            if full or (recurrent and len(prompt) != len(parts[-1][-1])):
                parts.append([])
            parts[-1].append(prompt)
        return parts

    def _thin_out(self, kept: dict[str, Any], rows: torch.Tensor) -> None:
        """Keep these rows of what the model keeps, in place."""
        for cache in kept.values():
            cache.reorder_cache(rows)

    def _step(
        self, kept: dict[str, Any], tokens_B: torch.Tensor, lengths_B: torch.Tensor, width: int, step: int
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Logits of the token after these, and what the model keeps then."""
        first = width - lengths_B
        mask = None
        if bool(first.any()) and any(map(caches.has_attention, kept.values())):
            mask = (torch.arange(width + step + 1, device=first.device)[None] >= first[:, None]).long()
        return self._forward(tokens_B[:, None], mask, (lengths_B + step)[:, None], kept)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, kept: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Logits of the last position, [B, V], and what the model keeps of the tokens so far."""
        extra = {"position_ids": positions, "logits_to_keep": 1}
        known = self._arguments
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=True,
            **kept,
            **{name: value for name, value in extra.items() if name in known},
        )
        given = {name: getattr(output, name, None) for name in _KEPT}
        return output.logits[:, -1], {**kept, **{name: value for name, value in given.items() if value is not None}}

    @property
    def _name(self) -> str:
        """By which the model takes a cache."""
        return next(name for name in _KEPT if name in self._arguments)

    @property
    def _arguments(self) -> frozenset[str]:
        """Names that the model takes."""
        kind: Any = type(self.model)
        return _parameters(kind)

    def _draw(self, logits_BV: torch.Tensor, noise_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A token a row, its log-probability, and the entropy of what it was drawn from."""
        log_probs_BV = (logits_BV.float() / (self.temperature or 1.0)).log_softmax(-1)
        probs_BV = log_probs_BV.exp()
        if self.temperature > 0:
            # in float64, since the rounding of a float32 sum over a large vocabulary would favour its end
            cumulative = probs_BV.to(noise_B.device).double().cumsum(-1)
            tokens_B = torch.searchsorted(cumulative, noise_B[:, None] * cumulative[:, -1:], right=True).squeeze(1)
            tokens_B = tokens_B.clamp(max=logits_BV.shape[-1] - 1).to(logits_BV.device)
        else:
            tokens_B = log_probs_BV.argmax(-1)
        entropies_B = -(probs_BV * log_probs_BV).nan_to_num(0.0).sum(-1)  # 0 · −inf where a token is ruled out
        return tokens_B, log_probs_BV.gather(1, tokens_B[:, None]).squeeze(1), entropies_B


@dataclass
class _Running:
    """A completion while it is being written."""

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finished: bool = False

    def add(self, token: int, log_prob: float, entropy: float, ended: bool) -> None:
        if self.finished:
            return
        self.ids.append(token)
        self.log_probs.append(log_prob)
        self.entropies.append(entropy)
        self.finished = ended

    def completion(self) -> Completion:
        return Completion(self.ids, self.finished, self.log_probs, self.entropies)


def keeps_tokens(kind: Any) -> bool:
    """Whether a model class takes what it made of the tokens so far, so that it can write token by token."""
    return not _parameters(kind).isdisjoint(_KEPT)


@functools.cache
def _parameters(kind: Any) -> frozenset[str]:
    """Names that a model class's `forward` takes."""
    return frozenset(inspect.signature(kind.forward).parameters)


@dataclass(frozen=True)
class PolicySampler:
    """The `Sampler` of training: the policy in this process, its adapter merged while it writes."""

    roles: Roles
    stop_ids: Sequence[int]
    pad_id: int
    max_new_tokens: int
    temperature: float = 1.0
    batch_size: int = 64
    batching: Batching = Batching.MIXED

    @property
    def exact_log_probs(self) -> bool:
        """True in float32: below, what is written token by token rounds otherwise than what is read at once."""
        kind = self.roles.device.type
        return self.roles.base.dtype == torch.float32 and not torch.is_autocast_enabled(kind)

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """For each prompt one completion a seed, from the policy as it is now."""
        with self.roles.sampling_model() as model:
            return TransformersSampler(
                model,
                self.stop_ids,
                self.pad_id,
                self.max_new_tokens,
                self.temperature,
                self.batch_size,
                self.batching,
            )(prompts, seeds)


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows aligned at their ends, and the mask of what is real; both [B, longest]."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows aligned at their starts, and the mask of what is real; both [B, longest]."""
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask
