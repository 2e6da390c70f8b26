"""Whether every pass of a training gives each trained weight a gradient, so that DDP need not search for others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call


def search_if_needed(args: Any, model: nn.Module) -> None:
    """Spare DDP the search for weights without a gradient where each has one, in place; what the user set stays.

    The search walks the graph of every backward pass.

    Args:
        args: Those of a trainer, each of whose backward passes is for one forward pass of the model.
        model: What it trains.
    """
    if args.ddp_find_unused_parameters is None and reaches_every_weight(model):
        args.ddp_find_unused_parameters = False


def reaches_every_weight(model: nn.Module) -> bool:
    """Whether each trained weight gets a gradient from any text, as a pass shows that computes sizes and no values.

    A router chooses among experts by what it reads, and layers that are dropped are drawn. So these do not, and neither
    does a model that takes more than text, or that cannot run without values.
    """
    drops_layers = any(value for name, value in vars(getattr(model, "config", model)).items() if "layerdrop" in name)
    if drops_layers or any("expert" in name.lower() for name, _ in model.named_modules()):
        return False
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        trained = [tensor for tensor in tensors.values() if tensor.requires_grad]
        inputs = {"input_ids": torch.ones(1, 4, dtype=torch.long), "use_cache": False}
        try:
            logits = functional_call(model, tensors, (), inputs).logits
            gradients = torch.autograd.grad(logits.sum(), trained, allow_unused=True)
        except Exception:  # whatever an architecture raises that computes with values
            return False
    return all(gradient is not None for gradient in gradients)
