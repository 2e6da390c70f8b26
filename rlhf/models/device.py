"""Where computation runs: the accelerator if there is one, else the CPU; one process or several."""

from __future__ import annotations

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """The state of a distributed launch (or of a single process), on CPUs where there is no accelerator.

    accelerate forms a group of CPU processes only when told at the first call; so this is that call everywhere.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def device() -> torch.device:
    """The device models are moved to outside a trainer."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")
