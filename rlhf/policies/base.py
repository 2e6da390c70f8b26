"""What policies of every kind do alike, because their roles are `models.roles.Roles`.

`LogitsPolicy` is for kinds whose actions, given the input and the actions before, all come from logits of one forward
pass: labels, spans, and texts that a decoder writes to an encoded input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rlhf.data.records import as_completion
from rlhf.models.roles import Roles
from rlhf.policies.completion import Completion
from rlhf.policies.protocol import Input, Outputs, Packed, RewardArguments
from rlhf.rewards import columns_of


class RolesPolicy(nn.Module):
    """A policy whose models are roles; a kind adds how it samples, packs and computes.

    Args:
        roles: The models.
    """

    folder: Path | None = None
    """The stage's, for what sampling writes; a temporary one if None."""

    def __init__(self, roles: Roles) -> None:
        super().__init__()
        self.roles = roles

    def close(self) -> None:
        """Give back what sampling holds on to, once nothing is sampled any more."""

    @property
    def config(self) -> Any:
        """The policy model's config."""
        return self.roles.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.roles.device

    @property
    def action_count(self) -> int | None:
        """Completions are too many to list."""
        return None

    def every_action(self, inputs: Sequence[Any]) -> list[list[Completion]]:
        """Every completion of each input; see `Policy.every_action`."""
        raise NotImplementedError

    @property
    def notice(self) -> str | None:
        """What its user should be told of how it computes."""
        return None

    @property
    def has_critic(self) -> bool:
        """Whether there are values."""
        return self.roles.has_critic

    @property
    def critic_on_policy(self) -> bool:
        """Whether the critic is a head on the policy's own states."""
        return self.roles.critic_on_policy

    @property
    def critic_from_reward(self) -> bool:
        """Whether the critic starts as the run's own reward model."""
        return self.roles.critic_from_reward

    def log_probs(self, packed: Any, entropies: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log π of each action and its entropy; see `Policy.log_probs`."""
        raise NotImplementedError

    def values(self, packed: Any) -> torch.Tensor:
        """The critic's values; see `Policy.values`."""
        raise NotImplementedError

    def one_pass(self) -> contextlib.AbstractContextManager[None]:
        """Within, a critic on the policy's states does not compute them again; see `Policy.one_pass`."""
        return self.roles.one_pass()

    def forward(self, role: str, packed: Packed, entropies: bool = False) -> Outputs:
        """What a trained role says, or both; see `Policy.__call__`."""
        if role == "policy":
            return Outputs(*self.log_probs(packed, entropies))
        if role == "critic":
            return Outputs(values_BT=self.values(packed)[:, :-1])
        with self.one_pass():
            outputs = Outputs(*self.log_probs(packed, entropies))
            return outputs._replace(values_BT=self.values(packed)[:, :-1])

    def reward_arguments(self, inputs: Sequence[Input], completions: Sequence[Sequence[Completion]]) -> RewardArguments:
        """The text of each completion, in the form of its prompt, and the columns of its row."""
        pairs = [(row, completion) for row, group in zip(inputs, completions, strict=True) for completion in group]
        return RewardArguments(
            [row.prompt for row, _ in pairs],
            [as_completion(row.prompt, completion.text) for row, completion in pairs],
            columns_of([row.columns for row, _ in pairs]),
        )

    def trained(self, role: str | None = None) -> dict[str, nn.Parameter]:
        """What is trained, by name: of the `policy`, of the `critic`, or of both."""
        return self.roles.trained(role)

    def scale_values(self, scale: float, shift: float) -> None:
        """Make the critic say `scale · V + shift`."""
        self.roles.scale_values(scale, shift)

    def save(self, file: Path, write: bool = True) -> None:
        """Write everything that is trained, for a checkpoint; see `Roles.save`."""
        self.roles.save(file, write)

    def load(self, file: Path) -> None:
        """Read what `save` wrote; see `Roles.load`."""
        self.roles.load(file)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute activations in the backward pass; see `Roles`."""
        self.roles.activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The same, by its name before transformers 5.23."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)


class PackedActions(NamedTuple):
    """B sequences of actions on P inputs, each input once."""

    inputs: dict[str, torch.Tensor]
    """What the model reads, [P, …] each."""
    input_B: torch.Tensor
    """Which input each sequence belongs to, [B]."""
    actions_BT: torch.Tensor
    """The numbers of the actions, 0 behind the last."""
    mask_BT: torch.Tensor
    """Bool, true at the actions."""

    def to(self, device: torch.device) -> PackedActions:
        """The same on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return PackedActions(inputs, *(tensor.to(device) for tensor in self[1:]))


class LogitsPolicy(RolesPolicy):
    """A policy whose actions come from logits that one forward pass gives.

    A kind adds `sample`, `size`, `pack`, `logits` and `states`.

    Args:
        roles: The models.
        temperature: Divides the logits; 0 takes the likeliest action, and log-probabilities are those at 1.
    """

    def __init__(self, roles: Roles, temperature: float) -> None:
        super().__init__(roles)
        self.temperature = temperature

    @property
    def exact_log_probs(self) -> bool:
        """Whether sampling gives the log-probabilities of training: below float32 batches round differently."""
        return self.roles.base.dtype == torch.float32

    @property
    def mismatch_hint(self) -> str:
        """What may be at fault where log-probabilities differ that must be equal."""
        return f"{type(self.roles.base).__name__} is at fault, as it computes other numbers from batch to batch"

    def logits(self, model: Any, packed: PackedActions) -> torch.Tensor:
        """Logits of every possible action at each step, given those before, [B, T, V], float32.

        Args:
            model: Policy or reference.
            packed: Inputs with their actions.
        """
        raise NotImplementedError

    def states(self, backbone: Any, packed: PackedActions) -> torch.Tensor:
        """What the critic's head reads: hidden states before each action and after the last, [B, T + 1, d]."""
        raise NotImplementedError

    def action_log_probs(self, model: Any, packed: PackedActions) -> torch.Tensor:
        """Log π of every possible action at each step, [B, T, V], nats."""
        return (self.logits(model, packed) / (self.temperature or 1.0)).log_softmax(-1)

    def log_probs(self, packed: PackedActions, entropies: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log π of each action and, if asked for, the entropy of what it was drawn from; [B, T]."""
        with self.roles.policy_model() as model:
            log_probs_BTV = self.action_log_probs(model, packed)
        return _chosen(log_probs_BTV, packed), entropy(log_probs_BTV) if entropies else None

    @torch.no_grad()
    def reference_log_probs(self, packed: PackedActions) -> torch.Tensor:
        """Log π_ref of each action, [B, T]."""
        with self.roles.reference() as model:
            return _chosen(self.action_log_probs(model, packed), packed)

    def values(self, packed: PackedActions) -> torch.Tensor:
        """The critic's value before each action and after the last, [B, T + 1]."""
        with self.roles.critic_backbone() as backbone:
            states_BUd = self.states(backbone, packed)
        return self.roles.value(states_BUd.flatten(0, 1)).view(states_BUd.shape[:2])

    @torch.no_grad()
    def kl(self, packed: PackedActions) -> torch.Tensor:
        """KL(π ‖ π_ref) of the distributions that a sequence's actions were drawn from, summed, [B], nats."""
        with self.roles.policy_model() as model:
            ours_BTV = self.action_log_probs(model, packed)
        with self.roles.reference() as model:
            theirs_BTV = self.action_log_probs(model, packed)
        kl_BT = expected(ours_BTV, ours_BTV - theirs_BTV)
        return kl_BT.masked_fill(~packed.mask_BT, 0.0).sum(1)

    def own_scores(self, inputs: Sequence[Any], completions: Sequence[Sequence[Completion]], batch_size: int) -> Any:
        """A reward model of this kind is a model of its own.

        Raises:
            NotImplementedError: Always; `training.roles` puts no reward model on such a base.
        """
        raise NotImplementedError


def _chosen(log_probs_BTV: torch.Tensor, packed: PackedActions) -> torch.Tensor:
    return log_probs_BTV.gather(-1, packed.actions_BT[..., None]).squeeze(-1)


def expected(log_probs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The expectation Σ_a π(a) · v(a) over the last dimension; an action that cannot be taken adds nothing."""
    return (log_probs.exp() * values.masked_fill(log_probs.isneginf(), 0.0)).sum(-1)  # and no gradient of 0 · ∞


def entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """Entropy over the last dimension, nats."""
    return -expected(log_probs, log_probs)


def like_sizes(sizes: Sequence[int], count: int) -> Iterator[list[int]]:
    """Indices in order of size, `count` at a time: like sizes stand together, and little is padding."""
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for begin in range(0, len(order), count):
        yield order[begin : begin + count]
