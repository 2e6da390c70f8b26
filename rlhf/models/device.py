"""Where computation runs: on the accelerator or the CPU, in one process or several."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled

from rlhf.errors import UserError

EFFICIENT_LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Variable by which accelerate has the main process alone read weights."""


def process_state(patience: float | None = None) -> PartialState:
    """The state of a distributed launch (or of a single process), on CPUs where there is no accelerator.

    accelerate forms a group of CPU processes only if the first call of the process asks for it, so all code calls this.

    Args:
        patience: Seconds that processes wait for each other before they give up; only the first call's counts. None
            takes torch's default.

    Raises:
        UserError: The launch asks for FSDP where accelerate would silently leave it out, or for FSDP1.
    """
    timeout = {} if patience is None else {"timeout": timedelta(seconds=patience)}
    state = PartialState(cpu=not torch.accelerator.is_available(), **timeout)
    if launch_asks_for("FSDP") and state.num_processes > 1:
        if state.distributed_type == DistributedType.MULTI_CPU:
            raise UserError(
                "the accelerate config asks for FSDP, which accelerate does not run on CPUs: every process would hold "
                "and train the whole model; take recipes/accelerate/cpu.yaml there"
            )
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError(
                "the accelerate config asks for FSDP1; set fsdp_version: 2, as in recipes/accelerate/fsdp2.yaml"
            )
    return state


def launch_asks_for(engine: str) -> bool:
    """Whether the accelerate config asks for `FSDP` or `DEEPSPEED`."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


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
    """Whether weights are sharded over processes, which must then all call a model in the same order.

    Args:
        weight: A weight of a model; None asks whether this launch will shard weights (FSDP2 or ZeRO-3).
    """
    if weight is not None:
        return isinstance(weight, DTensor) or hasattr(weight, "ds_id")
    return (launch_asks_for("FSDP") and process_state().num_processes > 1) or is_deepspeed_zero3_enabled()


_claimed = False
"""Whether this package shards the model in place of accelerate."""


def claim_sharding() -> bool:
    """Keep accelerate from sharding the model, so that the caller can shard it instead (`models.spread`).

    It must be called before anything loads a model or makes an accelerator: `reads_weights` depends on it.

    Returns:
        Whether the launch is configured to shard weights.
    """
    global _claimed
    _claimed = sharded()
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # where accelerate and transformers read it
    return _claimed


def main_reads_alone() -> bool:
    """Whether the main process alone reads the weights of a model that a trainer will shard, and sends them.

    accelerate's `fsdp_cpu_ram_efficient_loading: false` has all of them read under FSDP.
    """
    if _claimed:
        return True
    if launch_asks_for("FSDP"):
        return os.environ.get(EFFICIENT_LOADING, "false").lower() == "true"
    return is_deepspeed_zero3_enabled()


def reads_weights() -> bool:
    """Whether this process reads the weights of a model that a trainer will shard."""
    return process_state().is_main_process or not main_reads_alone()


def broadcast_from_main(value: Any) -> Any:
    """The value of the main process, on every process. All of them call it."""
    return broadcast_object_list([value])[0]


def device() -> torch.device:
    """The device of models that no trainer places."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def move(model: nn.Module, to: torch.device) -> None:
    """Move a model to a device, in place; a model with sharded weights stays where its shards are."""
    if not any(map(sharded, model.parameters())):
        model.to(to)
