"""Calling a model on folded rows, trying a forward pass, and replacing one."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from rlhf.prefix_sharing.layout import Folded


def last_hidden(backbone: Any, folded: Folded) -> torch.Tensor:
    """Last hidden states, [R, L, d]."""
    return backbone(**model_inputs(backbone, folded)).last_hidden_state


def model_inputs(model: Any, folded: Folded) -> dict[str, Any]:
    """What a model is called with, so that it computes these rows and keeps no cache."""
    return {**folded.inputs(model.config._attn_implementation, next(model.parameters()).dtype), "use_cache": False}


def can_be_tried(model: nn.Module) -> bool:
    """Whether all weights are in this process, so that a forward pass can be tried here."""
    weight = next(model.parameters())
    return not (weight.is_meta or isinstance(weight, DTensor) or hasattr(weight, "ds_id"))


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within, a model computes as in use: no dropout, no autocast; afterwards each module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def replace_forward(module: nn.Module, function: Callable[..., Any]) -> None:
    """Set a module's forward method, to be called with the module first; its signature stays what it was.

    The function must keep what it needs on the module: a copy of the module, or one that is pickled and loaded, then
    has its own.
    """
    module.forward = ReplacedForward(module, function)


@dataclass(eq=False)
class ReplacedForward:
    """A forward method that was set on a module, as an object: a closure could neither be copied nor pickled."""

    module: nn.Module
    function: Callable[..., Any]
    """A function of a Python module, called with `module` first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what calling the module does between its hooks."""
        return self.function(self.module, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the plain method: transformers reads it to decide what to pass (positions in generation)."""
        return inspect.signature(type(self.module).forward.__get__(self.module))
