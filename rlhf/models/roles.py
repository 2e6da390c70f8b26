"""The models of online training: policy, critic, reference and reward, on one frozen base or each by itself.

With LoRA there is one base. `policy` (adapter `default`) and `critic` are trained adapters, `reward` is the reward
stage's, and the bare base is the reference. With all weights trained, policy, critic and reference are models of their
own. Whoever calls a role does not see which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from rlhf.prefix_sharing.forward import last_hidden
from rlhf.prefix_sharing.head import completion_log_probs
from rlhf.prefix_sharing.layout import Folded
from rlhf.prefix_sharing.support import trial, why_not, widest

POLICY, CRITIC, REWARD = "default", "critic", "reward"
"""Adapter names; peft saves the first as the model's adapter."""


class Roles(nn.Module):
    """Policy, critic, reference and reward behind one face.

    Args:
        policy: A causal language model: a PeftModel (one base for all roles), or a plain one with all weights trained.
        value_head: Linear layer of the critic; None where no critic is trained.
        critic: The critic's backbone, where the policy is no PeftModel.
        reference: The reference, where the policy is no PeftModel.
        reward_head: Linear layer of the reward model, where its adapter is on the policy's base.
        critic_scores: Whether the critic starts as the reward model.
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        value_head: nn.Linear | None = None,
        critic: nn.Module | None = None,
        reference: PreTrainedModel | None = None,
        reward_head: nn.Linear | None = None,
        critic_scores: bool = False,
    ) -> None:
        super().__init__()
        self.policy, self.value_head, self.critic = policy, value_head, critic
        self.reference_model, self.reward_head = reference, reward_head
        self.critic_scores = critic_scores
        for frozen in (reference, reward_head):
            if frozen is not None:
                frozen.requires_grad_(False)
        self.shared = isinstance(policy, PeftModel)
        disable_dropout(self)
        self.unfolded = why_not(self.language_model) or trial(self.language_model.base_model)
        self._widest = widest(self.language_model)
        self._trained: list[nn.Parameter] = []
        if self.shared:
            named = policy.named_parameters()
            adapters = (POLICY,) if value_head is None else (POLICY, CRITIC)
            self._trained = [one for name, one in named if any(f".{adapter}." in f"{name}." for adapter in adapters)]
            self._train()

    @property
    def widest(self) -> int | None:
        """Most tokens of a row that replies share; 0 where each has its prompt to itself."""
        return 0 if self.unfolded else self._widest

    @property
    def language_model(self) -> PreTrainedModel:
        """The causal language model, without peft's wrapping; whichever adapter is active."""
        return self.policy.get_base_model() if self.shared else self.policy

    @property
    def config(self) -> Any:
        """The policy's config."""
        return self.language_model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.policy.parameters()).device

    @property
    def has_critic(self) -> bool:
        """Whether there are values."""
        return self.value_head is not None

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What the critic trains."""
        for name, parameter in self.named_parameters():
            own = not name.startswith("policy.") or (self.shared and f".{CRITIC}." in name)
            if own and parameter.requires_grad:
                yield parameter

    def forward(
        self, role: str, folded: Folded, temperature: float = 1.0, entropies: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A trained role on some sequences; gradients flow.

        Policy and critic share nothing that is trained, so a caller can run one backwards before the other goes
        forwards, and never holds the activations of both.

        Args:
            role: `policy` or `critic`.
            folded: The sequences.
            temperature: Divides the policy's logits, as in sampling.
            entropies: Whether the loss needs the policy's entropies.

        Returns:
            Of the policy log π of each reply token and its entropy (None if not asked for), of the critic its value
            before each reply token and None; [B, T] all, what stands at masked positions means nothing.
        """
        if role == "critic":
            return self.values(folded)[:, :-1], None
        with self._adapter(POLICY):
            return completion_log_probs(self.language_model, folded, temperature, entropies)

    def scale_values(self, scale: float, shift: float) -> None:
        """Make the critic say `scale · V + shift`: a head taken from a reward model, in units of normalised scores."""
        assert self.value_head is not None
        with torch.no_grad():
            self.value_head.weight.mul_(scale)
            self.value_head.bias.mul_(scale).add_(shift)

    def values(self, folded: Folded) -> torch.Tensor:
        """The critic's value before each reply token and after the last, [B, T + 1]."""
        assert self.value_head is not None
        with self._adapter(CRITIC):
            hidden = last_hidden(self.language_model.base_model if self.shared else self.critic, folded)
        states = hidden.flatten(0, 1)[folded.states_BS.flatten()]
        return _head(self.value_head, states).view(folded.states_BS.shape)

    @torch.no_grad()
    def policy_log_probs(self, folded: Folded, temperature: float) -> torch.Tensor:
        """Log π of each reply token, [B, T], without gradients."""
        with self._adapter(POLICY):
            return completion_log_probs(self.language_model, folded, temperature)[0]

    @torch.no_grad()
    def reference_log_probs(self, folded: Folded, temperature: float) -> torch.Tensor:
        """Log π_ref of each reply token, [B, T]."""
        with self._adapter(None):
            model = self.language_model if self.shared else self.reference_model
            return completion_log_probs(model, folded, temperature)[0]

    @torch.no_grad()
    def scores(self, folded: Folded) -> torch.Tensor:
        """The reward adapter's score of each sequence, read at its last token, [B]."""
        assert self.reward_head is not None
        with self._adapter(REWARD):
            hidden = last_hidden(self.language_model.base_model, folded)
        last = hidden.flatten(0, 1)[folded.states_BS[:, -1]]
        return _head(self.reward_head, last).squeeze(-1)

    @contextlib.contextmanager
    def sampling_model(self) -> Iterator[PreTrainedModel]:
        """The policy, ready to write: its adapter merged for the time being, which spares two products a layer.

        Not below float32, where a small update would be rounded away.
        """
        merge = self.shared and self.language_model.dtype == torch.float32
        with self._adapter(POLICY), merged(self.policy) if merge else contextlib.nullcontext():
            training = self.language_model.training
            self.language_model.eval()
            try:
                yield self.language_model
            finally:
                self.language_model.train(training)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute activations in the backward pass, which must follow a role's forward before another role's.

        Args:
            activation_checkpointing_kwargs: Of `torch.utils.checkpoint.checkpoint`. Never reentrant: under a
                frozen base that finds no input with a gradient.
            **kwargs: Which layers and where to, as transformers' own models take them.
        """
        settings = {**(activation_checkpointing_kwargs or {}), "use_reentrant": False}
        for model in (self.language_model, self.critic):
            if model is not None:
                enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
                enable(settings, **kwargs)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The same, by its name before transformers 5.23."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    @contextlib.contextmanager
    def _adapter(self, name: str | None) -> Iterator[None]:
        """Make an adapter the active one, or none; nothing to do for models of their own."""
        if not self.shared:
            yield
            return
        try:
            if name is None:
                with self.policy.disable_adapter():
                    yield
            else:
                self.policy.set_adapter(name)
                yield
        finally:
            self._train()

    def _train(self) -> None:
        """Switching adapters flips requires_grad in peft; what is trained stays trained, all else frozen."""
        self.policy.requires_grad_(False)
        for parameter in self._trained:
            parameter.requires_grad_(True)


def _head(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """A score in float32, autocast or not: bfloat16 knows no step finer than 1/64 at 3."""
    with torch.autocast(states.device.type, enabled=False):
        return layer(states.to(layer.weight.dtype)).float()


@contextlib.contextmanager
def merged(model: PeftModel) -> Iterator[None]:
    """Within, the active adapter is part of the base weights; afterwards the base is what it was, bit for bit.

    peft's own unmerging subtracts again, which leaves rounding behind; here the original tensors are put back.
    """
    embeddings = model.get_base_model().get_input_embeddings().weight  # a head tied to it is left as it is
    layers = [layer for layer in model.modules() if hasattr(layer, "get_delta_weight") and _plain_lora(layer)]
    layers = [layer for layer in layers if layer.get_base_layer().weight is not embeddings]
    kept = [layer.get_base_layer().weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, kept, strict=True):
            active = [name for name in layer.active_adapters if name in layer.lora_A]
            deltas = (layer.get_delta_weight(name).to(weight.dtype) for name in active)
            layer.get_base_layer().weight.data = sum(deltas, weight)
            layer._disable_adapters = True
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight
            layer._disable_adapters = False


def _plain_lora(layer: Any) -> bool:
    """Whether a layer's update is W + sBA on an ordinary weight, so that merging it is exact."""
    weight = getattr(layer.get_base_layer(), "weight", None)
    return (
        isinstance(weight, torch.Tensor)
        and weight.is_floating_point()
        and bool(getattr(layer, "lora_A", None))
        and not getattr(layer, "lora_variant", None)
        and not any(getattr(layer, "lora_bias", {}).values())
    )


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: the log-probabilities of sampling and of training must be the same."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
