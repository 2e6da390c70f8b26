"""The models of online training: policy, critic, reference and reward, on one frozen base or each by itself.

With LoRA there is one base. `policy` (adapter `default`) and `critic` are trained adapters, `reward` is the reward
stage's, and the bare base is the reference. With all weights trained, policy, critic and reference are models of their
own. Whoever asks for a role does not see which. What the models read and what their outputs mean is no concern of this
file: that is a policy's (`rlhf.policies`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from rlhf.models.device import sharded
from rlhf.models.freeze import frozen
from rlhf.models.shards import put, whole_state

POLICY, CRITIC, REWARD = "default", "critic", "reward"
"""Adapter names; peft saves the first as the model's adapter."""


class Roles(nn.Module):
    """Policy, critic, reference and reward, whichever models they are.

    Args:
        policy: The model that is trained: a PeftModel (one base for all roles), or a plain model, of which all weights
            are trained.
        value_head: Linear layer of the critic; None where no critic is trained. It reads the policy's own states where
            there is neither an adapter `critic` nor a model for it.
        critic: The critic's backbone, where the policy is no PeftModel.
        reference: The reference, where the policy is no PeftModel.
        reward_head: Linear layer of the reward model, where its adapter is on the policy's base.
        critic_from_reward: Whether the critic starts as the reward model.
        freeze: Patterns of parameters that no adapter trains (`models.freeze`).
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        value_head: nn.Linear | None = None,
        critic: nn.Module | None = None,
        reference: PreTrainedModel | None = None,
        reward_head: nn.Linear | None = None,
        critic_from_reward: bool = False,
        freeze: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.policy: Any = policy
        self.value_head, self.critic = value_head, critic
        self.reference_model, self.reward_head = reference, reward_head
        self.critic_from_reward = critic_from_reward
        for untrained in (reference, reward_head):
            if untrained is not None:
                untrained.requires_grad_(False)
        self.shared = isinstance(policy, PeftModel)
        adapters = set(self.policy.peft_config) if self.shared else set()
        self.critic_on_policy = value_head is not None and critic is None and CRITIC not in adapters
        """Whether the critic is a head on the policy's own states."""
        self._passed: list[Any] | None = None
        disable_dropout(self)
        self._trained: set[str] = set()
        """Names of the policy's parameters that are trained, since sharding puts others in their place."""
        if self.shared:
            self._trained = {
                name
                for name, _ in policy.named_parameters()
                if any(f".{adapter}." in f"{name}." for adapter in adapters & {POLICY, CRITIC})
                and not frozen(name, freeze)
                and f".modules_to_save.{CRITIC}." not in name  # a copy of the policy's head, which no critic reads
            }
            self._train()

    def train(self, mode: bool = True) -> Roles:
        """Training mode; batch normalisation keeps the statistics that it has.

        With those of a batch, an action's probability would depend on the rows beside it, and the ratio to the policy
        that sampled would not start at 1.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @property
    def base(self) -> PreTrainedModel:
        """The policy's model with its own head, without peft's wrapping; whichever adapter is active."""
        return self.policy.get_base_model() if self.shared else self.policy

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters on the policy's base."""
        return list(self.policy.peft_config) if self.shared else []

    def models(self) -> list[PreTrainedModel]:
        """The models of transformers: the base that all roles share, or the model of each role."""
        own: list[Any] = [self.base, self.critic, self.reference_model]
        return [model for model in own if model is not None]

    @property
    def config(self) -> Any:
        """The policy's config."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.policy.parameters()).device

    @property
    def has_critic(self) -> bool:
        """Whether there are values."""
        return self.value_head is not None

    @contextlib.contextmanager
    def policy_model(self) -> Iterator[PreTrainedModel]:
        """The policy, its head included."""
        with self._adapter(POLICY):
            yield self.base

    @contextlib.contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The reference, its head included."""
        model = self.base if self.shared else self.reference_model
        assert model is not None
        with self._adapter(None):
            yield model

    @contextlib.contextmanager
    def critic_backbone(self) -> Iterator[Any]:
        """What computes the critic's hidden states; `value` reads them."""
        if not self.critic_on_policy:
            backbone = self.base.base_model if self.shared else self.critic
            assert backbone is not None
            with self._adapter(CRITIC):
                yield backbone
        elif self._passed:
            yield Recalled(self.base.base_model, self._passed[-1])
        else:
            alone = self._passed is None
            with self._adapter(POLICY), torch.no_grad() if alone else contextlib.nullcontext():
                yield self.base.base_model

    @contextlib.contextmanager
    def one_pass(self) -> Iterator[None]:
        """Within, a critic on the policy's states reads those of the policy's forward pass, and trains them.

        It computes them again where that pass calls another module than `base_model` (OPT, encoder-decoders). Outside,
        only its head learns. A critic of its own computes its states as ever.
        """
        if not self.critic_on_policy:
            yield
            return
        passed = self._passed = []
        handle = self.base.base_model.register_forward_hook(lambda module, given, output: passed.append(output))
        try:
            yield
        finally:
            handle.remove()
            self._passed = None

    @contextlib.contextmanager
    def reward_backbone(self) -> Iterator[nn.Module]:
        """What computes the reward adapter's hidden states; `score` reads them."""
        with self._adapter(REWARD):
            yield self.base.base_model

    @contextlib.contextmanager
    def sampling_model(self) -> Iterator[PreTrainedModel]:
        """The policy in evaluation mode, its adapter merged for the time being, which spares two products a layer.

        It is not merged below float32, where a small update would be rounded away.
        """
        merge = self.shared and self.base.dtype == torch.float32
        with self._adapter(POLICY), merged(self.policy) if merge else contextlib.nullcontext():
            training = self.base.training
            self.base.eval()
            try:
                yield self.base
            finally:
                self.base.train(training)

    def value(self, states: torch.Tensor) -> torch.Tensor:
        """The critic's values of hidden states, [N, d] to [N]."""
        assert self.value_head is not None
        return _head(self.value_head, states).squeeze(-1)

    def score(self, states: torch.Tensor) -> torch.Tensor:
        """The reward model's scores of hidden states, [N, d] to [N]."""
        assert self.reward_head is not None
        return _head(self.reward_head, states).squeeze(-1)

    def scale_values(self, scale: float, shift: float) -> None:
        """Make the critic say `scale · V + shift`: a head taken from a reward model, in units of normalised scores."""
        assert self.value_head is not None
        with torch.no_grad():
            self.value_head.weight.mul_(scale)
            self.value_head.bias.mul_(scale).add_(shift)

    def trained(self, role: str | None = None) -> dict[str, nn.Parameter]:
        """What is trained, by name.

        Args:
            role: `policy` or `critic`; None for both.
        """
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and role in (None, self._role(name))
        }

    def _role(self, name: str) -> str:
        """Which role trains a parameter."""
        own = name.startswith("policy.") and not (self.shared and f".{CRITIC}." in name)
        return "policy" if own else "critic"

    def save(self, file: Path, write: bool = True) -> None:
        """Write everything that is trained, under its own name; frozen weights are where they came from.

        Every process calls this.

        Args:
            file: Where to.
            write: Whether this process writes.
        """
        if state := whole_state(self.trained(), write):
            save_file(state, file)

    def load(self, file: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: Other weights are trained now.
        """
        saved, trained = load_file(file), self.trained()
        if saved.keys() != trained.keys():
            raise ValueError(f"{file}: holds other weights than are trained now")
        for name, parameter in trained.items():
            put(parameter, saved[name])

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
        for model in (self.base, self.critic):
            if model is not None:
                before: Any = model.gradient_checkpointing_enable
                enable = getattr(model, "activation_checkpointing_enable", before)
                enable(settings, **kwargs)

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
        """Freeze all but the trained adapters: switching adapters flips requires_grad in peft."""
        for name, parameter in self.policy.named_parameters():
            parameter.requires_grad_(name in self._trained)


class Recalled:
    """A backbone that answers a call with what it computed before; all else it is itself.

    Args:
        backbone: What was called.
        output: What it gave.
    """

    def __init__(self, backbone: nn.Module, output: Any) -> None:
        self._backbone, self._output = backbone, output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the backbone gave before, whatever the arguments."""
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


def _head(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """A score in float32, autocast or not: bfloat16 knows no step finer than 1/64 at 3."""
    with torch.autocast(states.device.type, enabled=False):
        return layer(states.to(layer.weight.dtype)).float()


@contextlib.contextmanager
def merged(model: PeftModel) -> Iterator[None]:
    """Within, the active adapter is part of the base weights; afterwards the base is what it was, bit for bit.

    peft's own unmerging subtracts again, which leaves rounding behind; here the original tensors are put back.
    """
    base: Any = model.get_base_model()
    embeddings = base.get_input_embeddings().weight  # a head tied to it is left as it is
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "get_delta_weight")]
    layers = [layer for layer in layers if _plain_lora(layer)]
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
        and not sharded(weight)
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
