"""The seam between online training and what it optimises.

A policy is a distribution over actions, given an input. For a causal language model an input is a prompt, and the
actions are the completion's tokens; for a classifier an input is a text or an image, and the one action is a label.
Online training (`rlhf.ppo`) asks of a policy what stands here and knows nothing else of it.

A kind of policy is one file of this folder. It has a class of inputs, a class of packed sequences, and a subclass of
`rlhf.policies.base.RolesPolicy`, which has those of the methods below that all kinds share.

Axes: B sequences (completions of all inputs, in order), T actions of the longest, U = T + 1 states: before each
action and after the last. An input has S completions each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from rlhf.data.records import Text
from rlhf.policies.completion import Completion


class Input(Protocol):
    """What a policy acts on: one row of the training data."""

    @property
    def prompt(self) -> Text:
        """The input as reward functions and people read it."""
        ...

    @property
    def columns(self) -> dict[str, Any]:
        """Further columns of the row, which reward functions take by name."""
        ...


class Packed(Protocol):
    """B sequences as one forward pass takes them."""

    @property
    def mask_BT(self) -> torch.Tensor:
        """Bool, [B, T], true at the actions of each sequence, which stand at the start of its row."""
        ...

    def to(self, device: torch.device) -> Packed:
        """The same on a device."""
        ...


AnyInput = TypeVar("AnyInput", bound=Input, contravariant=True)
AnyPacked = TypeVar("AnyPacked", bound=Packed)


class RewardArguments(NamedTuple):
    """What a reward function is given, `f(prompts, completions, **columns)`: lists of B."""

    prompts: list[Text]
    completions: list[Text]
    columns: dict[str, list[Any]]


class Outputs(NamedTuple):
    """What a forward pass of trained roles gives, [B, T] each; None for a role that was not asked."""

    log_probs_BT: torch.Tensor | None = None
    """log π of each action, nats."""
    entropies_BT: torch.Tensor | None = None
    """Of what each action was drawn from, nats; only if asked for."""
    values_BT: torch.Tensor | None = None
    """The critic's value before each action."""


class Policy(Protocol[AnyInput, AnyPacked]):
    """What online training optimises, with the roles around it; an `nn.Module`."""

    # what it is

    @property
    def exact_log_probs(self) -> bool:
        """Whether `sample` gives the log-probabilities of `log_probs`.

        Those of another engine, or of weights below float32, are close and not equal.
        """
        ...

    @property
    def has_critic(self) -> bool:
        """Whether there are values."""
        ...

    @property
    def critic_on_policy(self) -> bool:
        """Whether the critic is a head on the policy's own states: one forward pass then serves both."""
        ...

    @property
    def critic_from_reward(self) -> bool:
        """Whether the critic starts as the run's own reward model, in units of its scores."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def action_count(self) -> int | None:
        """How many actions a completion is, of which there is one: the choices are so few that all can be tried.

        None for a kind whose completions cannot be listed.
        """
        ...

    @property
    def mismatch_hint(self) -> str:
        """What may be at fault where log-probabilities differ that must be equal, and what helps: part of a message."""
        ...

    # collecting a rollout

    def sample(self, inputs: Sequence[AnyInput], seeds: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """Act on inputs with the policy as it is now.

        Args:
            inputs: What it acts on.
            seeds: For each input the seeds of its completions, S for each. A completion depends on its input and its
                seed alone, so that a resumed run and any number of processes see the same.

        Returns:
            For each input its completions: actions, their log-probabilities, and how they read as text.
        """
        ...

    def every_action(self, inputs: Sequence[AnyInput]) -> list[list[Completion]]:
        """For each input every completion there is, `action_count` of them, with its log-probability."""
        ...

    def reward_arguments(
        self, inputs: Sequence[AnyInput], completions: Sequence[Sequence[Completion]]
    ) -> RewardArguments:
        """The completions of all inputs, in order, as reward functions take them."""
        ...

    def own_scores(
        self, inputs: Sequence[AnyInput], completions: Sequence[Sequence[Completion]], batch_size: int
    ) -> list[float]:
        """Scores of B completions by the reward model that shares the policy's base, on the actions themselves."""
        ...

    # forward passes

    def size(self, input: AnyInput, completions: Sequence[Completion]) -> int:
        """What an input with these completions costs (tokens, say): batches are made of like sizes."""
        ...

    def pack(self, inputs: Sequence[AnyInput], completions: Sequence[Sequence[Completion]]) -> AnyPacked:
        """Lay inputs with their completions out for one forward pass; the completions of an input stand together."""
        ...

    def log_probs(self, packed: AnyPacked, entropies: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log π of each action and, if asked for, the entropy of what it was drawn from.

        Returns:
            [B, T] both, nats; under the distribution that is sampled from, temperature included. What stands where the
            mask is false means nothing.
        """
        ...

    def reference_log_probs(self, packed: AnyPacked) -> torch.Tensor:
        """Log π_ref of each action, [B, T], nats; no gradients."""
        ...

    def values(self, packed: AnyPacked) -> torch.Tensor:
        """The critic's value before each action, and after the last to the end of the row, [B, T + 1]."""
        ...

    def one_pass(self) -> AbstractContextManager[None]:
        """Within, `values` after `log_probs` of the same actions takes what it can from that forward pass."""
        ...

    def __call__(self, role: str, packed: AnyPacked, entropies: bool = False) -> Outputs:
        """What trained roles say, with gradients.

        Training calls this and not the methods, since data parallelism hooks into the call. Policy and critic share
        nothing that is trained, so that one can go backwards before the other goes forwards; a critic on the policy's
        states trains them too if called with the policy, and only its head if called by itself.

        Args:
            role: The `policy`, the `critic`, or `both` in one pass.
            packed: Inputs with their actions.
            entropies: Whether those of the policy are wanted.
        """
        ...

    # what is trained

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters, frozen ones too."""
        ...

    def trained(self, role: str | None = None) -> dict[str, nn.Parameter]:
        """What is trained, by name: of the `policy`, of the `critic`, or of both."""
        ...

    def scale_values(self, scale: float, shift: float) -> None:
        """Make the critic say `scale · V + shift`."""
        ...

    def save(self, file: Path, write: bool = True) -> None:
        """Write everything that is trained, for a checkpoint."""
        ...

    def load(self, file: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: Other weights are trained now.
        """
        ...
