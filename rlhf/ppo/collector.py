"""One rollout: prompts are replied to, replies are scored, scores become advantages.

Everything random in it follows from the project's seed and the rollout's number, and nothing from what ran before: so a
resumed run sees the prompts and the replies that an uninterrupted one sees.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rlhf.data.records import Text
from rlhf.data.tokenize import Codec
from rlhf.models.roles import Roles
from rlhf.objectives.kl import KL_ESTIMATORS, k1
from rlhf.objectives.masking import Reduce, masked_mean, masked_moments, masked_sum, whiten
from rlhf.policies.completion import Completion, as_completion, decoded
from rlhf.policies.measure import adapter_scores, measure
from rlhf.policies.sample import stop_ids
from rlhf.policies.sampler import PolicySampler, Sampler, row_seed
from rlhf.policies.trial import batching_of
from rlhf.policies.vllm import VllmSampler
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.diagnostics import alike, token_rewards
from rlhf.ppo.rollout import Rollout, padded
from rlhf.rewards import RewardFunction, columns_of
from rlhf.rewards.compose import normalisation, normalise, score_matrix, weighted_sum


@dataclass(frozen=True)
class PromptRow:
    """A prompt that training may reply to."""

    ids: list[int]
    prompt: Text
    columns: dict[str, Any]
    ending: Sequence[int] = ()
    """What follows the text of a reply (`Codec.ending`); EOS if empty."""


def prompt_rows(data: Dataset, codec: Codec) -> list[PromptRow]:
    """Prompts with their columns, as `prepare` encoded them, and what ends a reply to a text or in a conversation."""
    endings: dict[type, list[int]] = {}
    rows = []
    for row in data:
        prompt = json.loads(row["prompt"])
        if type(prompt) not in endings:
            endings[type(prompt)] = codec.ending(prompt)
        rows.append(PromptRow(row["prompt_ids"], prompt, json.loads(row["extra"]), endings[type(prompt)]))
    return rows


@dataclass
class Rewards:
    """What is maximised: named parts and their weights.

    A part is a reward function, or None for the reward adapter on the policy's own base.
    """

    parts: dict[str, RewardFunction | None]
    weights: dict[str, float]
    mean_K: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """By which each part is brought to mean 0 and std 1; empty: nothing is."""
    std_K: torch.Tensor = field(default_factory=lambda: torch.ones(0))

    @property
    def weights_K(self) -> torch.Tensor:
        """The weights, in the order of the parts."""
        return torch.tensor([self.weights[name] for name in self.parts], dtype=torch.float64)

    def settle(self, scores_BK: torch.Tensor) -> None:
        """Take mean and standard deviation from reference samples."""
        self.mean_K, self.std_K = normalisation(scores_BK)

    def scale_of(self, name: str) -> tuple[float, float]:
        """How a part's score s enters the total: as a · s + b."""
        k = list(self.parts).index(name)
        if not len(self.mean_K):
            return self.weights[name], 0.0
        scale = self.weights[name] / self.std_K[k].item()
        return scale, -scale * self.mean_K[k].item()

    def total(self, scores_BK: torch.Tensor, reduce: Reduce) -> torch.Tensor:
        """One score a reply, [B]; NaN where no part has one."""
        if len(self.mean_K):
            scores_BK = normalise(scores_BK, self.mean_K, self.std_K)
        known_BK = ~scores_BK.isnan()
        sums = reduce(torch.stack([known_BK.double().sum(0), scores_BK.nansum(0)]))
        fallback_K = torch.where(sums[0] > 0, sums[1] / sums[0].clamp(min=1), math.nan)
        return weighted_sum(scores_BK, self.weights_K, fallback_K)


@dataclass(frozen=True)
class Collected:
    """A rollout, what it says in numbers, and some of its replies."""

    rollout: Rollout
    metrics: dict[str, float]
    samples: list[dict[str, Any]]
    distance: float
    """Mean |log π − log π_ref| of a token, nats: 0 while the policy is its reference."""


@dataclass
class Collector:
    """Makes rollouts.

    `reduce` sums a tensor over all processes; every process must call in step.
    """

    roles: Roles
    rewards: Rewards
    tokenizer: PreTrainedTokenizerBase
    args: PPOConfig
    sampler: Sampler
    """Writes with the policy as it is when called."""
    context_length: int | None
    reduce: Reduce

    def scores(self, rows: Sequence[PromptRow], completions: Sequence[Sequence[Completion]]) -> torch.Tensor:
        """Scores of every reply by every part, [B, K], as the parts give them."""
        pairs = [(row, one) for row, group in zip(rows, completions, strict=True) for one in group]
        texts = [as_completion(row.prompt, one.text) for row, one in pairs]
        prompts = [row.prompt for row, _ in pairs]
        columns = columns_of([row.columns for row, _ in pairs])
        found: list[Sequence[float | None]] = []
        for part in self.rewards.parts.values():
            if part is not None:
                with torch.autocast(self.roles.device.type, enabled=False):  # a model scores as it does elsewhere
                    found.append(part(prompts, texts, **columns))
            else:
                ids, endings = [row.ids for row in rows], [row.ending or [self.tokenizer.eos_token_id] for row in rows]
                pad, size = int(self.tokenizer.pad_token_id), self.args.per_device_eval_batch_size
                found.append(adapter_scores(self.roles, ids, completions, pad, endings, size, self.context_length))
        return score_matrix(found)

    def sample(self, rows: Sequence[PromptRow], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """For each prompt one completion a seed, with their text."""
        return decoded(self.sampler([row.ids for row in rows], seeds), self.tokenizer)

    def collect(self, rows: Sequence[PromptRow], seeds: Sequence[Sequence[int]], kl_coef: float) -> Collected:
        """Reply to these prompts and work out the advantages."""
        args = self.args
        completions, exact = self.sample(rows, seeds), self.sampler.exact
        flat = [one for group in completions for one in group]
        scores_BK = self.scores(rows, completions)
        prompts, pad = [row.ids for row in rows], int(self.tokenizer.pad_token_id)
        measured = measure(
            self.roles, prompts, completions, pad, args.temperature, args.per_device_eval_batch_size, exact
        )
        longest = max(len(one.ids) for one in flat)
        lengths_B = torch.tensor([len(one.ids) for one in flat])
        replied_BT = torch.arange(longest)[None] < lengths_B[:, None]
        sampled_BT = padded([one.log_probs for one in flat], longest)
        log_probs_BT = sampled_BT if measured.policy_BT is None else measured.policy_BT
        scores_B = self.rewards.total(scores_BK, self.reduce)
        mask_BT = replied_BT & ~scores_B.isnan()[:, None]
        cut_B = torch.tensor([not one.finished for one in flat])
        bootstrap = args.truncated == "bootstrap" and args.estimator.needs_values
        kl_BT = KL_ESTIMATORS[args.kl_estimator](log_probs_BT, measured.reference_BT)
        rewards_BT = token_rewards(scores_B, kl_BT, mask_BT, kl_coef, cut_B, args.missing_eos_penalty, bootstrap)
        paid_B = rewards_BT.sum(1)
        if args.whiten_rewards:
            rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False, reduce=self.reduce)
        values_BT = last_B = None
        if measured.values_BS is not None:
            values_BT, last_B = measured.values_BS[:, :-1], measured.values_BS[:, -1] * (cut_B & bootstrap)
        advantages_BT, returns_BT = args.estimator.function(
            rewards_BT, values_BT, mask_BT, args.gamma, args.lam, last_B, args.samples_per_prompt
        )
        if args.whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT, reduce=self.reduce)
        weights_BT = None
        if not exact:
            weights_BT = (log_probs_BT - sampled_BT).exp().clamp(max=args.max_importance_weight)
        rollout = Rollout(
            prompts, [[one.ids for one in group] for group in completions], mask_BT, log_probs_BT, advantages_BT,
            returns_BT, values_BT, weights_BT, pad, self.roles.widest,
        )  # fmt: skip
        kl_B = (k1(log_probs_BT, measured.reference_BT) * replied_BT).sum(1)
        metrics = self._metrics(rollout, flat, scores_BK, scores_B, kl_B, paid_B, replied_BT)
        metrics["objective/kl_coef"] = kl_coef
        if len(seeds[0]) > 1:
            alike_P = alike(scores_B.view(-1, len(seeds[0])))
            metrics["objective/alike"] = self._mean(alike_P.float(), torch.ones_like(alike_P))
        if not exact:
            metrics["sampler/gap"] = self._mean((log_probs_BT - sampled_BT).abs(), replied_BT)
        distance = self._mean((log_probs_BT - measured.reference_BT).abs(), replied_BT)
        return Collected(rollout, metrics, self._samples(rows, flat, scores_BK, scores_B, kl_B), distance)

    def _metrics(
        self,
        rollout: Rollout,
        flat: Sequence[Completion],
        scores_BK: torch.Tensor,
        scores_B: torch.Tensor,
        kl_B: torch.Tensor,
        paid_B: torch.Tensor,
        replied_BT: torch.Tensor,
    ) -> dict[str, float]:
        """Means over the replies of all processes."""
        scored_B = ~scores_B.isnan()
        every_B = torch.ones_like(scored_B)
        _, variance = masked_moments(scores_B, scored_B, self.reduce)
        found = {
            "objective/kl": self._mean(kl_B, every_B),
            "objective/scores": self._mean(scores_B, scored_B),
            "objective/scores_std": variance.sqrt().item(),
            "objective/rlhf_reward": self._mean(paid_B, scored_B),
            "response/length": self._mean(replied_BT.sum(1), every_B),
            "response/eos_share": self._mean(torch.tensor([float(one.finished) for one in flat]), every_B),
            "response/scored_share": self._mean(scored_B.float(), every_B),
        }
        if flat[0].entropies:  # not every engine says
            entropies_BT = padded([one.entropies for one in flat], replied_BT.shape[1])
            found["policy/entropy"] = self._mean(entropies_BT, replied_BT)
        for name, column_B in zip(self.rewards.parts, scores_BK.T, strict=True):
            found[f"reward/{name}"] = self._mean(column_B, ~column_B.isnan())
        if rollout.values_BT is not None:
            mask = rollout.mask_BT
            _, left = masked_moments(rollout.returns_BT - rollout.values_BT, mask, self.reduce)
            _, there = masked_moments(rollout.returns_BT, mask, self.reduce)
            found["value/explained_variance"] = (1 - left / there).item() if there > 0 else math.nan
            found["value/mean"] = self._mean(rollout.values_BT, mask)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _mean(self, values: torch.Tensor, mask: torch.Tensor) -> float:
        count = self.reduce(mask.sum().double())
        return masked_mean(self.reduce(masked_sum(values.double(), mask)), torch.tensor(True), count).item()

    def _samples(
        self,
        rows: Sequence[PromptRow],
        flat: Sequence[Completion],
        scores_BK: torch.Tensor,
        scores_B: torch.Tensor,
        kl_B: torch.Tensor,
    ) -> list[dict[str, Any]]:
        """The first replies, for reading."""
        chosen = range(min(self.args.log_completions, len(flat)))
        parts = [
            {name: None if math.isnan(value) else value for name, value in zip(self.rewards.parts, row, strict=True)}
            for row in scores_BK.tolist()
        ]
        return [
            {
                "prompt": rows[row // (len(flat) // len(rows))].prompt,
                "completion": flat[row].text,
                "tokens": len(flat[row].ids),
                "finished": flat[row].finished,
                "rewards": parts[row],
                "score": None if math.isnan(scores_B[row]) else scores_B[row].item(),
                "kl": kl_B[row].item(),
            }
            for row in chosen
        ]


def make_sampler(roles: Roles, tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> Sampler:
    """The sampler that the settings name."""
    stops = stop_ids(roles.language_model, tokenizer)
    if args.sampler == "vllm":
        return VllmSampler(
            roles, tokenizer, stops, args.max_new_tokens, args.max_length, args.temperature, args.vllm_memory
        )
    pad = int(tokenizer.pad_token_id)
    batching = batching_of(roles.language_model)
    return PolicySampler(roles, stops, pad, args.max_new_tokens, args.temperature, args.sampling_batch_size, batching)


def prompt_numbers(rollout: int, count: int, prompts: int, seed: int) -> list[int]:
    """Which prompts a rollout replies to: the next ones of an endless stream of shuffled passes.

    Args:
        rollout: Its number, from 0.
        count: Prompts a rollout.
        prompts: Prompts there are.
        seed: Of the shuffling.
    """
    numbers: list[int] = []
    for place in range(rollout * count, (rollout + 1) * count):
        number, offset = divmod(place, prompts)
        if not numbers or offset == 0:
            generator = torch.Generator().manual_seed(row_seed(seed, "prompts", number))
            order = torch.randperm(prompts, generator=generator).tolist()
        numbers.append(order[offset])
    return numbers
