"""Where computation runs: on the accelerator or the CPU, in one process or several."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled

from rlhf import processes
from rlhf.errors import UserError

EFFICIENT_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Variable by which accelerate has the main process alone read weights."""


def check_memory(name: str, weights: int, needed: int) -> None:
    """Check that weights fit into the memory of this machine.

    Args:
        name: The setting that asks for them.
        weights: How many they are.
        needed: Their size, bytes.

    Raises:
        UserError: They do not. The operating system would kill the process that allocates them, without a message.
    """
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise UserError(
            f"{name}: {weights / 1e9:,.1f} billion weights need {needed / 2**30:,.0f} GB of memory, and this "
            f"machine has {available / 2**30:,.0f}"
        )


def sharded(weight: torch.Tensor) -> bool:
    """Whether a weight is sharded over processes, which must then all call its model in the same order."""
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


def launch_shards() -> bool:
    """Whether this launch shards weights (FSDP2 or ZeRO-3)."""
    return (processes.asked_for("FSDP") and processes.state().num_processes > 1) or is_deepspeed_zero3_enabled()


def claim_sharding() -> bool:
    """Keep accelerate from sharding the model, so that the caller can shard it instead (`models.fsdp`).

    It must be called before anything loads a model or makes an accelerator. It changes the environment, since that is
    where accelerate and transformers look. From then on the main process alone reads weights.

    Returns:
        Whether the launch is configured to shard weights.
    """
    shards = launch_shards()
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    if shards:
        os.environ[EFFICIENT_LOADING] = "true"
    return shards


def main_reads_alone() -> bool:
    """Whether the main process alone reads the weights of a model that will be sharded, and sends them.

    accelerate's `fsdp_cpu_ram_efficient_loading: false` has all of them read under FSDP.
    """
    return os.environ.get(EFFICIENT_LOADING, "false").lower() == "true" or is_deepspeed_zero3_enabled()


def reads_weights() -> bool:
    """Whether this process reads the weights of a model that will be sharded."""
    return processes.is_main() or not main_reads_alone()


def device() -> torch.device:
    """The device of models that no trainer places."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def move(model: nn.Module, to: torch.device) -> None:
    """Move a model to a device, in place; a model with sharded weights stays where its shards are."""
    if not any(map(sharded, model.parameters())):
        model.to(to)
