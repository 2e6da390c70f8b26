"""Changes that could make PPO faster, each tried alone: ppo_ours.py makes them to a trainer before it is timed.

None of them is in the package. None changes a formula, but for `no_reference` and
`no_values`, which leave a pass out to see what it costs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from rlhf.models.roles import merged
from rlhf.prefix_sharing.forward import replace_forward


def one_backward(trainer: Any) -> None:
    """Policy and critic in one graph, with one backward pass; the activations of both are kept until then."""
    trainer._trained_roles = lambda: ["both"]


def merged_measuring(trainer: Any) -> None:
    """The adapters of reward and critic are part of the weights where nothing is trained by them."""
    roles = trainer.policy.roles
    for name in ("reward_backbone", "critic_backbone"):
        setattr(roles, name, _merging(roles, getattr(roles, name)))


def _merging(roles: Any, role: Callable[[], Any]) -> Callable[[], Any]:
    @contextlib.contextmanager
    def with_merged() -> Iterator[Any]:
        training = torch.is_grad_enabled()
        with role() as backbone, contextlib.nullcontext() if training else merged(roles.policy):
            yield backbone

    return with_merged


def scale_low_rank(trainer: Any) -> None:
    """Compute Wx + B(s·Ax) with the scale on r numbers a token instead of d, and the sum made by the second product."""
    for layer in _adapted(trainer):
        replace_forward(layer, _low_rank_forward)


def _low_rank_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.disable_adapters:
        return layer.base_layer(x)
    name = layer.active_adapters[0]
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    y = layer.base_layer(x)
    low_rank = nn.functional.linear(x, down).mul_(layer.scaling[name])
    return y.flatten(0, -2).addmm_(low_rank.flatten(0, -2), up.t()).view(y.shape)


def merged_training(trainer: Any) -> None:
    """Policy and critic train on merged weights W + sBA, made once a step; only the adapters' gradients have r rows."""
    for layer in _adapted(trainer):
        layer.merged_weights = {}
        replace_forward(layer, _merged_forward)
    step = trainer.optimizer_step_hook = lambda *_: [layer.merged_weights.clear() for layer in _adapted(trainer)]
    trainer.create_optimizer().register_step_post_hook(step)


def _merged_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.disable_adapters:
        return layer.base_layer(x)
    name = layer.active_adapters[0]
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    if name not in layer.merged_weights:
        with torch.no_grad():
            layer.merged_weights[name] = layer.base_layer.weight + layer.scaling[name] * (up @ down)
    return _MergedLinear.apply(x, layer.merged_weights[name], down, up, layer.scaling[name])


class _MergedLinear(torch.autograd.Function):
    """x Wᵀ for W = W₀ + sBA, with gradients of A and B: dA = s(yB)ᵀx and dB = s yᵀ(xAᵀ), y the upstream gradient."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, down: Any, up: Any, scale: float) -> Any:  # type: ignore[override]
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override]
        x, weight, down, up = ctx.saved_tensors
        flat, upstream = x.flatten(0, -2), gradient.flatten(0, -2)
        of_x = gradient @ weight if ctx.needs_input_grad[0] else None
        of_down = of_up = None
        if ctx.needs_input_grad[2]:
            of_down = ((upstream @ up) * ctx.scale).t() @ flat
            of_up = (((flat @ down.t()) * ctx.scale).t() @ upstream).t()
        return of_x, None, of_down, of_up, None


def no_reference(trainer: Any) -> None:
    """Without the reference's pass: what leaving it out at `kl_coef: 0` could save."""
    policy = trainer.policy
    policy.reference_log_probs = lambda packed: torch.zeros(packed.mask_BT.shape)
    trainer._check_agreement = lambda *_: None  # of the first rollout with the reference


def no_values(trainer: Any) -> None:
    """Without the critic's pass over a rollout: what taking values from the sampler's own states could save."""
    policy = trainer.policy
    values = policy.values
    policy.values = lambda packed: (
        values(packed) if torch.is_grad_enabled() else torch.zeros(packed.states_BU.shape) + 0.0
    )


def _adapted(trainer: Any) -> list[Any]:
    return [layer for layer in trainer.policy.modules() if hasattr(layer, "lora_A")]


CHANGES: dict[str, Callable[[Any], None]] = {
    "one-backward": one_backward,
    "merged-measuring": merged_measuring,
    "scale-low-rank": scale_low_rank,
    "merged-training": merged_training,
    "no-reference": no_reference,
    "no-values": no_values,
}
