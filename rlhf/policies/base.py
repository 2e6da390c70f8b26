"""What policies of every kind do alike, because their roles are `models.roles.Roles`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.models.roles import Roles
from rlhf.policies.completion import Completion, as_completion
from rlhf.policies.protocol import Input, Packed, RewardArguments
from rlhf.rewards import columns_of


class RolesPolicy(nn.Module):
    """A policy whose models are roles; a kind adds how it samples, packs and computes.

    Args:
        roles: The models.
    """

    def __init__(self, roles: Roles) -> None:
        super().__init__()
        self.roles = roles

    @property
    def config(self) -> Any:
        """The policy model's config."""
        return self.roles.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.roles.device

    @property
    def has_critic(self) -> bool:
        """Whether there are values."""
        return self.roles.has_critic

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

    def forward(self, role: str, packed: Packed, entropies: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A trained role; see `Policy.__call__`."""
        if role == "critic":
            return self.values(packed)[:, :-1], None
        return self.log_probs(packed, entropies)

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

    def save(self, file: Path) -> None:
        """Write everything that is trained, for a checkpoint."""
        self.roles.save(file)

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


def like_sizes(sizes: Sequence[int], count: int) -> Iterator[list[int]]:
    """Indices in order of size, `count` at a time: like sizes stand together, and little is padding."""
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for begin in range(0, len(order), count):
        yield order[begin : begin + count]
