"""Counts the bytes that a forward and a backward pass hold, without computing them: tensors have shapes and no data.

PyTorch's fake tensors go through the model's own code. So the count knows what each architecture, attention, adapter
and precision keeps for the backward pass, and needs no formula of any of them.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils


class LiveBytes(TorchDispatchMode):
    """Within, counts the bytes of all storages that are alive, those of given tensors left out.

    Args:
        known: Modules whose weights are not counted.
    """

    def __init__(self, *known: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}
        for module in known:
            for tensor in (*module.parameters(), *module.buffers()):
                self._alive[_key(tensor)] = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in self._alive:
                self._add(tensor)
        return made

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = _key(tensor), storage.nbytes()
        self._alive[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class Kept:
    """Bytes of a pass beside the weights."""

    forward: int
    """What is held at the end of the forward pass, for the backward pass."""
    forward_peak: int
    """The most that is held during the forward pass."""
    peak: int
    """The most in both, gradients of the weights included."""


def with_fake_weights(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Replace a meta model's weights by fake ones on the CPU, in place: attention takes other paths on the meta device.

    Args:
        model: The model; weights that several modules share stay shared.
        mode: Of the fake tensors.
    """
    made: dict[int, Any] = {}
    for module in model.modules():
        own: list[tuple[str, Any]] = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for name, tensor in own:
            if id(tensor) not in made:
                with mode:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                weight = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = (tensor, nn.Parameter(fake, tensor.requires_grad) if weight else fake)
            setattr(module, name, made[id(tensor)][1])
    return model


def kept_by(
    model: Any,
    mode: FakeTensorMode,
    *,
    rows: int,
    length: int,
    mask: bool = False,
    autocast: torch.dtype | None = None,
    backward: bool = True,
) -> Kept:
    """Trace a model's backbone on a batch.

    Args:
        model: A model of transformers with fake weights, without peft's wrapping; adapters stay in its layers.
        mode: Of its weights.
        rows: Rows of the batch.
        length: Tokens of each.
        mask: Whether a mask over all pairs of tokens keeps sequences of a row apart.
        autocast: The type that products are computed in; None for that of the weights.
        backward: Whether there is a backward pass.
    """
    inputs = _inputs(model, mode, rows, length, mask)
    return _traced(model, mode, lambda: _states(model.base_model(**inputs)), autocast, backward)


def kept_by_head(
    model: Any, mode: FakeTensorMode, positions: int, autocast: torch.dtype | None, backward: bool
) -> Kept:
    """Trace the log-probabilities of online training, whose logits exist all at once.

    Args:
        model: A language model with fake weights.
        mode: Of its weights.
        positions: At which the head runs.
        autocast: As in `kept_by`.
        backward: Whether there is a backward pass.
    """
    head = model.get_output_embeddings()
    with mode:
        states = torch.empty(positions, head.weight.shape[1], dtype=autocast or model.dtype, requires_grad=backward)

    def log_probs() -> torch.Tensor:
        logits = head(states).float() / 1.0
        return logits.gather(1, torch.zeros(positions, 1, dtype=torch.long)).squeeze(1) - logits.logsumexp(-1)

    return _traced(model, mode, log_probs, autocast, backward)


def _traced(
    model: Any, mode: FakeTensorMode, compute: Callable[[], torch.Tensor], autocast: torch.dtype | None, backward: bool
) -> Kept:
    for weight in model.parameters():
        weight.grad = None
    grad = contextlib.nullcontext() if backward else torch.no_grad()
    cast = torch.autocast("cpu", autocast) if autocast is not None else contextlib.nullcontext()
    with mode, _no_packed_rows(), LiveBytes(model) as live, grad:
        with cast:
            result = compute()
        forward, forward_peak = live.now, live.peak
        if backward:
            result.float().sum().backward()
        peak = live.peak
    for weight in model.parameters():
        weight.grad = None
    return Kept(forward, forward_peak, peak)


@contextlib.contextmanager
def _no_packed_rows() -> Iterator[None]:
    """Within, transformers takes no row for several packed ones: it would look at positions, which are fake."""
    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None  # type: ignore[assignment,return-value]
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def _states(output: Any) -> torch.Tensor:
    """The last hidden states; the pooled ones of a model that has no others."""
    states = getattr(output, "last_hidden_state", None)
    return output[0] if states is None else states


def _inputs(model: Any, mode: FakeTensorMode, rows: int, length: int, mask: bool) -> dict[str, Any]:
    """What the backbone is called with."""
    config = model.config
    known = inspect.signature(type(model.base_model).forward).parameters
    with mode:
        if "pixel_values" in known and "input_ids" not in known:
            size = getattr(config, "image_size", 224)
            height, width = size if isinstance(size, list | tuple) else (size, size)
            return {"pixel_values": torch.empty(rows, getattr(config, "num_channels", 3), height, width)}
        inputs: dict[str, Any] = {"input_ids": torch.zeros(rows, length, dtype=torch.long)}
        if "use_cache" in known:
            inputs["use_cache"] = False
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = torch.zeros(rows, length, dtype=torch.long)
        if mask:
            kind = torch.bool if config._attn_implementation != "eager" else model.dtype
            inputs["attention_mask"] = torch.ones(rows, 1, length, length, dtype=kind)
    return inputs


@contextlib.contextmanager
def checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """Within, a model computes its layers again in the backward pass."""
    if not wanted or not getattr(model, "supports_gradient_checkpointing", False):
        yield
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
