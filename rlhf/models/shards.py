"""Sharded weights: the shard that this process holds, the whole weight gathered, and values written back.

FSDP2 holds a weight as a DTensor, DeepSpeed's ZeRO-3 as a partition beside an empty parameter. The functions take
weights that are not sharded as well, so callers need not distinguish.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from rlhf.models.device import sharded


def is_sharded(model: nn.Module) -> bool:
    """Whether a model has sharded weights; the processes must then call it together."""
    return any(sharded(weight) for weight in model.parameters())


def own_parts(model: nn.Module) -> None:
    """Make the parameters of a model the shards that this process holds.

    After a forward pass FSDP2 leaves whole copies of the last layers in their place; values written to them are lost.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(weight: torch.Tensor) -> torch.Tensor:
    """The shard of a weight that this process holds; the weight itself if it is not sharded."""
    if isinstance(weight, DTensor):
        return weight.to_local()
    return getattr(weight, "ds_tensor", weight)


def counted(model: nn.Module) -> tuple[int, int]:
    """How many numbers a model's weights have, and how many of them this process holds."""
    own_parts(model)
    weights = list(model.parameters())
    return sum(getattr(weight, "ds_numel", weight.numel()) for weight in weights), sum(
        local(weight).numel() for weight in weights
    )


@torch.no_grad()
def whole(weight: Any) -> torch.Tensor:
    """A copy of a whole weight. Every process that has a shard of it calls this."""
    if isinstance(weight, DTensor):
        detached: Any = weight.detach()
        return detached.full_tensor()
    if not sharded(weight):
        return weight.detach().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().clone()


@torch.no_grad()
def put(weight: torch.Tensor, values: torch.Tensor) -> None:
    """Write values into a weight, in place. Every process that has a shard of it calls this.

    Args:
        weight: The weight, sharded or not.
        values: The whole tensor, the same on every process.
    """
    if isinstance(weight, DTensor):
        values = values.to(weight.device, weight.dtype)
        weight.copy_(distribute_tensor(values, weight.device_mesh, weight.placements, src_data_rank=None))
    elif not sharded(weight):
        weight.copy_(values)
    else:
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            weight.copy_(values)


def whole_state(weights: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Gather weights one after the other, on the CPU. Every process that has shards of them calls this.

    Args:
        weights: By name. Two names of the same weight get the same tensor.
        keep: Whether this process keeps the result; the others get an empty dictionary.
    """
    gathered: dict[int, torch.Tensor] = {}
    for weight in weights.values():
        if id(weight) not in gathered and (keep or sharded(weight)):
            tensor = whole(weight)
            gathered[id(weight)] = tensor.cpu().contiguous() if keep else tensor.new_empty(0)
    return {name: gathered[id(weight)] for name, weight in weights.items()} if keep else {}


def norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of some tensors, taken as one vector. Every process that has shards of them calls this."""
    tensors = list(tensors)
    shards = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    parts = [local(tensor).detach().float() for tensor in tensors if hasattr(tensor, "ds_id")]
    total = get_total_norm([tensor for tensor in tensors if not sharded(tensor)])
    if shards:
        of_shards: Any = get_total_norm(shards)
        total = torch.hypot(total.to(shards[0].device), of_shards.full_tensor())
    if parts:
        squared = torch.stack([(part**2).sum() for part in parts]).sum()
        torch.distributed.all_reduce(squared)
        total = torch.hypot(total.to(squared.device), squared.sqrt())
    return total


def clip_gradients(parameters: Sequence[torch.Tensor], limit: float, total: torch.Tensor) -> None:
    """Scale the gradients of parameters so that their norm is at most a limit.

    Args:
        parameters: All have gradients.
        limit: The largest norm.
        total: Their norm now (`norm`).
    """
    shards = [parameter for parameter in parameters if isinstance(parameter.grad, DTensor)]
    clip_grads_with_norm_([parameter for parameter in parameters if not sharded(parameter)], limit, total)
    if shards:
        mesh: Any = shards[0].grad
        clip_grads_with_norm_(shards, limit, DTensor.from_local(total, mesh.device_mesh))
