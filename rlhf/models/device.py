"""Where computation runs: on the accelerator or the CPU, in one process or several."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.tensor import DTensor

from rlhf.errors import UserError


def process_state(patience: float | None = None) -> PartialState:
    """The state of a distributed launch (or of a single process), on CPUs where there is no accelerator.

    accelerate forms a group of CPU processes only if the first call of the process asks for it, so all code calls this.

    Args:
        patience: Seconds that processes wait for each other before they give up; only the first call's counts. None
            takes torch's default.
    """
    timeout = {} if patience is None else {"timeout": timedelta(seconds=patience)}
    return PartialState(cpu=not torch.accelerator.is_available(), **timeout)


def check_memory(name: str, parameters: int) -> None:
    """Check that this many float32 weights fit into the memory of this machine.

    Raises:
        UserError: They do not. The operating system would kill the process that allocates them, without a message.
    """
    needed, available = 4 * parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise UserError(
            f"{name}: {parameters / 1e9:,.1f} billion weights need {needed / 2**30:,.0f} GB of memory, and this "
            f"machine has {available / 2**30:,.0f}"
        )


def sharded(weight: torch.Tensor | None = None) -> bool:
    """Whether weights are spread over processes, all of which must then make the same calls of a model.

    Args:
        weight: A weight of the model; None asks whether this launch will spread the weights.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return True
    return weight is not None and (isinstance(weight, DTensor) or hasattr(weight, "ds_id"))


def device() -> torch.device:
    """The device of models that no trainer places."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def move(model: nn.Module, to: torch.device) -> None:
    """Move a model to a device, in place."""
    model.to(to)
