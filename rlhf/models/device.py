"""Where computation runs: the accelerator if there is one, else the CPU; one process or several."""

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

    accelerate forms a group of CPU processes only when told at the first call; so this is that call everywhere.

    Args:
        patience: Seconds that processes wait for each other before they give up, heard at the first call alone; None
            leaves it to torch.
    """
    timeout = {} if patience is None else {"timeout": timedelta(seconds=patience)}
    return PartialState(cpu=not torch.accelerator.is_available(), **timeout)


def check_memory(name: str, parameters: int) -> None:
    """Hold that so many float32 weights fit into the memory of this machine.

    Raises:
        UserError: They do not; asked for them, the system would end the process without a word.
    """
    needed, there = 4 * parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"{name}: {parameters / 1e9:,.1f} billion weights need {needed / 2**30:,.0f} GB of memory, and this "
            f"machine has {there / 2**30:,.0f}"
        )


def sharded(weight: torch.Tensor | None = None) -> bool:
    """Whether weights are spread over processes, which must then all make the same calls of a model.

    Args:
        weight: One of them; without it, whether this launch will spread them.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return True
    return weight is not None and (isinstance(weight, DTensor) or hasattr(weight, "ds_id"))


def device() -> torch.device:
    """The device models are moved to outside a trainer."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def move(model: nn.Module, to: torch.device) -> None:
    """Move a model to a device, in place."""
    model.to(to)
