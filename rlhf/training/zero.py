"""The state that DeepSpeed's ZeRO keeps in each process, as tensors and numbers that need no pickle."""

from __future__ import annotations

from typing import Any

_KEPT = ("base_optimizer_state", "single_partition_of_fp32_groups", "optimizer_state_dict", "fp32_flat_groups")
"""Keys of DeepSpeed's state that are kept: states and float32 weights, as stages 1 and 2 name them, and stage 3."""


def zero_state(optimizer: Any) -> dict[str, Any]:
    """What a process holds: its shard of the float32 weights and of the optimizer's state, and the loss scale.

    Args:
        optimizer: DeepSpeed's, of any stage.
    """
    state = {name: value for name, value in optimizer.state_dict().items() if name in _KEPT}
    return {**state, "loss_scaler": _numbers(optimizer.loss_scaler)}


def load_zero_state(optimizer: Any, state: dict[str, Any], processes: int) -> None:
    """Restore what `zero_state` gave in the same process; the number of processes must be the same.

    Args:
        optimizer: DeepSpeed's; under stage 3 the weights that it computes with are made from those in float32.
        state: The result of `zero_state`.
        processes: Number of processes.
    """
    vars(optimizer.loss_scaler).update(state["loss_scaler"])
    own = {**optimizer.state_dict(), **{name: state[name] for name in _KEPT if name in state}}
    partitions = hasattr(optimizer, "checkpoint_event_prologue")  # stage 3, which keeps small weights whole, too
    if partitions:
        optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict([own] * processes, load_from_fp32_weights=True)
    if partitions:
        optimizer.checkpoint_event_epilogue()


def _numbers(scaler: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(scaler).items() if isinstance(value, int | float)}
