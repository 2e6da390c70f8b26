"""Shards the frozen and the trained weights of PPO's models over the processes of a launch, with FSDP2.

Each of N processes keeps one N-th of every layer, and gathers a layer while it computes it. Adapters, tied embeddings
and norms outside of the layers stay whole in each process.

accelerate does the same for a trainer whose model is called as one module. The roles of PPO are called separately and
in parts, so each of their layers is sharded here by itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, share_comm_ctx
from torch.distributed.tensor import DTensor

from rlhf import processes
from rlhf.models.roles import Roles


def shard(roles: Roles, device: torch.device) -> None:
    """Shard the weights, in place; every process calls this.

    The main process sends its weights layer by layer; the values that the other processes have are not used.

    Args:
        roles: The models.
        device: The device of the shards.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    every = []
    for model in roles.models():
        whole = _whole(model, roles.adapters)
        parts: list[Any] = []
        for layer in _layers(model, whole):
            _receive(layer, device, whole)
            parts.append(fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole))
        for before, part in zip([*parts[:1], *parts], parts, strict=False):
            # FSDP itself would prefetch what was gathered before, in whatever pass: another role's, or the sampler's
            part.set_modules_to_backward_prefetch([part if before is parts[0] else before])
        every += parts
    share_comm_ctx(every)
    _receive(roles, device)


def _parts(model: nn.Module) -> list[Any]:
    """The modules that FSDP gathers, each at once, in the model's order."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within, every process holds all weights and calls the model independently of the others.

    Nothing may be trained or loaded within: the whole weights are copies, which are dropped at the end.
    """
    parts = _parts(model)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


@contextlib.contextmanager
def gathered_on_demand(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Within, every process calls the model as often as it needs, and holds the weights of one layer at a time.

    Gathering a layer takes all processes, but they need layers at different times: some still write completions when
    others have finished. So before each layer the processes agree on the first layer that any of them needs next. All
    gather it, and those that do not need it drop it again. A process that has finished keeps gathering until all have.
    Nothing may be trained within.

    Yields:
        Gathers layers for the other processes until all have called it, which they must before any other collective.
    """
    parts = _parts(model)
    serve = functools.partial(_wait_for, parts, len(parts))
    handles = [
        part.register_forward_pre_hook(functools.partial(_wait_for, parts, number), prepend=True)
        for number, part in enumerate(parts)
    ]
    try:
        yield serve
        serve()
    finally:
        for handle in handles:
            handle.remove()


def _wait_for(parts: Sequence[Any], number: int, *call: Any) -> None:
    """Gather what other processes need until it is a part's turn; the number after the last means: no part."""
    while (first := _first_needed(parts, number)) != number:
        parts[first].unshard()
        parts[first].reshard()


def _first_needed(parts: Sequence[Any], number: int) -> int:
    """The smallest of the numbers that the processes pass."""
    device = next(parts[0].parameters()).device
    needed = torch.tensor(number, device=device)
    dist.all_reduce(needed, dist.ReduceOp.MIN)
    return int(needed)


def fits_whole(model: nn.Module, device: torch.device) -> bool:
    """Whether the whole weights of a sharded model take at most half of the free memory on every process.

    The other half is for the rollout's cache and activations. Every process calls this and gets the same answer.
    """
    weights = [weight for weight in model.parameters() if isinstance(weight, DTensor)]
    needed = sum(weight.numel() * weight.element_size() - weight.to_local().nbytes for weight in weights)
    fits = torch.tensor(int(2 * needed <= _free_memory(device)), device=device)
    dist.all_reduce(fits, dist.ReduceOp.MIN)
    return bool(fits)


def _free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device; 0 where the device does not say."""
    if device.type == "cpu":
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages // processes.on_node()
    try:
        free, _ = torch.accelerator.get_memory_info(device)
        return free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    except (AttributeError, NotImplementedError, RuntimeError):  # an older torch, or a device without such counts
        return 0


@torch.no_grad()
def average_gradients(parameters: Collection[nn.Parameter]) -> None:
    """Average the gradients of parameters that are whole over the processes, in place, in one all-reduce.

    A parameter without a gradient counts as 0 where another process has one, and stays without where none has.

    Args:
        parameters: The same ones in each process, in the same order; those that are sharded are left to FSDP.
    """
    whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if not whole:
        return
    grads = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in whole]
    used = torch.tensor([parameter.grad is not None for parameter in whole], device=grads[0].device)
    flat = torch.cat([*(grad.flatten().float() for grad in grads), used.float()])
    dist.all_reduce(flat)
    *averages, counts = (flat / dist.get_world_size()).split([*(grad.numel() for grad in grads), len(grads)])
    for parameter, grad, average, count in zip(whole, grads, averages, counts.tolist(), strict=True):
        parameter.grad = grad.copy_(average.view_as(grad)) if count else None


def _whole(model: nn.Module, adapters: Collection[str]) -> set[nn.Parameter]:
    """Parameters that stay whole: those of adapters, and those of several modules, such as tied embeddings."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return {
        parameter
        for parameter, of in names.items()
        if len(of) > 1 or any(f".{adapter}." in f"{name}." for name in of for adapter in adapters)
    }


def _layers(model: Any, whole: Collection[nn.Parameter]) -> list[nn.Module]:
    """The modules that are gathered, each at once, in order: layers, and embeddings and head if they are not tied."""
    kinds = set(model._no_split_modules or ())
    ends: list[Any] = [_input(model), model.get_output_embeddings()]
    ends = [end for end in ends if isinstance(getattr(end, "weight", None), nn.Parameter) and end.weight not in whole]
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in layers)
        if not inside and (module in ends or type(module).__name__ in kinds):
            layers[name] = module
    return list(layers.values())


def _input(model: Any) -> nn.Module | None:
    """The embedding of a model's input; None where it does not say which it is."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


@torch.no_grad()
def _receive(module: nn.Module, device: torch.device, kept: Collection[nn.Parameter] = ()) -> None:
    """Put parameters and buffers on a device, with the main process's values.

    Args:
        module: The module; its sharded tensors are left as they are.
        device: The device.
        kept: Parameters that are not moved yet.
    """
    placed: dict[torch.Tensor, torch.Tensor] = {}
    for part in module.modules():
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if isinstance(tensor, DTensor) or tensor in kept:
                continue
            if tensor not in placed:
                there = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                if dist.get_rank() == 0:
                    there = tensor.detach().to(device).contiguous()
                dist.broadcast(there, 0)
                parameter = isinstance(tensor, nn.Parameter)
                placed[tensor] = nn.Parameter(there, tensor.requires_grad) if parameter else there
            setattr(part, name, placed[tensor])
