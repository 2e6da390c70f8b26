"""Where computation runs: the accelerator if there is one, else the CPU; one process or several."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor


def process_state() -> PartialState:
    """The state of a distributed launch (or of a single process), on CPUs where there is no accelerator.

    accelerate forms a group of CPU processes only when told at the first call; so this is that call everywhere.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


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
