"""Models of the processes that read no weights, since the main process sends them their part.

What is sent goes parameter by parameter, so a model must have the same ones in every process: of the same names, sizes
and types, and tied alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from rlhf import processes
from rlhf.errors import UserError


class Parameter(NamedTuple):
    """What a model has under a name."""

    shape: tuple[int, ...]
    tied_to: str
    """The first name of the same parameter."""


@torch.no_grad()
def unwritten(kind: Any, model: PreTrainedModel, fit: Callable[[Any], None]) -> PreTrainedModel:
    """A model on the meta device as one on the CPU with unwritten weights, which take no memory until they are written.

    Buffers that are computed, such as rotary frequencies, have their values.

    Args:
        kind: The class that makes a model from a config.
        model: On the meta device.
        fit: Changes sizes of the new model, still on the meta device.
    """
    with init_empty_weights():
        result: Any = kind.from_config(
            model.config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    fit(result)
    buffers = dict(result.named_buffers())
    result.to_empty(device="cpu")
    result.tie_weights()
    for name, buffer in result.named_buffers():
        buffer.copy_(buffers[name])
    return result


@torch.no_grad()
def match_main(model: nn.Module, name: str) -> None:
    """Give the parameters of a model the types that they have in the main process, in place. All processes call this.

    A type may be the parameter's own: transformers keeps some of T5's in float32.

    Args:
        model: In the main process with its weights, in every other without.
        name: Of the model, for messages.

    Raises:
        UserError: The parameters of a process are not those of the main one; every process raises it.
    """
    wanted, dtypes = processes.broadcast(
        (parameters(model), {name: parameter.dtype for name, parameter in model.named_parameters()})
    )
    problem = next(filter(None, processes.gathered(difference(parameters(model), wanted))), None)
    if problem is not None:
        raise UserError(
            f"{name}: {problem}; processes that share weights cannot train it: correct its config.json "
            "(tie_word_embeddings, say), or launch it with recipes/accelerate/ddp.yaml"
        )
    for own, parameter in model.named_parameters():
        if parameter.dtype != dtypes[own]:
            parameter.data = torch.empty_like(parameter, dtype=dtypes[own])


def parameters(model: nn.Module) -> dict[str, Parameter]:
    """The parameters of a model by all their names."""
    first: dict[nn.Parameter, str] = {}
    return {
        name: Parameter(tuple(parameter.shape), first.setdefault(parameter, name))
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def difference(made: dict[str, Parameter], read: dict[str, Parameter]) -> str | None:
    """How the parameters that a config makes differ from those that were read; None where they are the same."""
    for name in sorted(made.keys() | read.keys()):
        ours, theirs = made.get(name), read.get(name)
        if ours is None or theirs is None:
            return f"{name} is in {'its config' if theirs is None else 'its weights'} alone"
        if ours.shape != theirs.shape:
            return f"{name} has size {list(ours.shape)} by its config, and {list(theirs.shape)} in its weights"
        if ours.tied_to != theirs.tied_to:
            tied = ours if ours.tied_to != name else theirs
            by = "config, and not by its weights" if tied is ours else "weights, and not by its config"
            return f"{name} is tied to {tied.tied_to} by its {by}"
    return None
