"""Forward passes over folded sequences: the head runs only where a reply token is predicted."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from rlhf.prefix_sharing.layout import Folded


def reply_log_probs(
    model: Any, folded: Folded, temperature: float, entropies: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability of each reply token and, if wanted, the entropy there; both [B, T], nats, 0 at masked positions.

    The head runs only where a reply token is predicted; logits of prompts are never made.

    Args:
        model: A causal language model.
        folded: The sequences.
        temperature: Divides the logits.
        entropies: Whether they are wanted: they cost memory in the backward pass.
    """
    mask_BT = folded.mask_BT
    tokens_K = folded.ids_RL.flatten()[folded.states_BS[:, 1:][mask_BT]]
    logits_KV = reply_logits(model, folded) / temperature
    log_norm_K = logits_KV.logsumexp(-1)
    log_probs_K = logits_KV.gather(1, tokens_K[:, None]).squeeze(1) - log_norm_K
    empty_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    log_probs_BT = empty_BT.masked_scatter(mask_BT, log_probs_K)
    if not entropies:
        return log_probs_BT, None
    finite_KV = logits_KV.clamp(min=torch.finfo(torch.float32).min)  # 0 · −inf where a token is ruled out
    expected_K = ((logits_KV - log_norm_K[:, None]).exp() * finite_KV).sum(-1)
    return log_probs_BT, empty_BT.masked_scatter(mask_BT, log_norm_K - expected_K)


def reply_logits(model: Any, folded: Folded) -> torch.Tensor:
    """Logits before each reply token, in the order of the mask's true places: [K, V], float32."""
    index_K = folded.states_BS[:, :-1][folded.mask_BT]
    with head_at(model, index_K) as choice:
        logits = model(**_inputs(model, folded)).logits.flatten(0, -2)
    return (logits if choice.made else logits[index_K]).float()


def last_hidden(backbone: Any, folded: Folded) -> torch.Tensor:
    """Last hidden states, [R, L, d]."""
    return backbone(**_inputs(backbone, folded)).last_hidden_state


@dataclass
class Choice:
    """What `head_at` did."""

    made: bool = False
    """Whether states were chosen: some models (OPT, BART's decoder) call another module than their `base_model`."""


@contextlib.contextmanager
def head_at(model: PreTrainedModel, index_K: torch.Tensor) -> Iterator[Choice]:
    """Within, whatever is above the backbone sees only these positions of the flattened rows, as one row of K.

    A hook behind the backbone, so that whatever a model does with its states (heads, caps, scales) stays as it is. All
    else that the backbone puts out (router logits, a cache) is left as it was.

    Args:
        model: A model with a head.
        index_K: Positions in the flattened rows.

    Yields:
        Whether positions were chosen, once the model has been called; if not, its outputs are those of all positions.
    """
    choice = Choice()

    def chosen(module: nn.Module, inputs: Any, output: Any) -> Any:
        states = getattr(output, "last_hidden_state", None)
        if states is None:
            return output
        choice.made = True
        return with_states(output, states.flatten(0, 1)[index_K][None])

    handle = model.base_model.register_forward_hook(chosen)
    try:
        yield choice
    finally:
        handle.remove()


def can_be_tried(model: nn.Module) -> bool:
    """Whether this process has the weights, all of them."""
    weight = next(model.parameters())
    return not (weight.is_meta or isinstance(weight, DTensor) or hasattr(weight, "ds_id"))


@contextlib.contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """Within, a model computes as it is for use: no dropout, no autocast; afterwards each module is in its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def with_states(output: ModelOutput, states: torch.Tensor) -> ModelOutput:
    """A backbone's output with other last hidden states, and all its other fields."""
    return type(output)(**{**output, "last_hidden_state": states})


@dataclass(eq=False)
class Replaced:
    """A forward method that was set on a module, as an object: a closure could neither be copied nor pickled."""

    module: nn.Module
    function: Callable[..., Any]
    """Of a module of Python, called with the module first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the module does, between its hooks."""
        return self.function(self.module, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the plain method: transformers looks at it to decide what to pass (positions in generation)."""
        return inspect.signature(type(self.module).forward.__get__(self.module))


def replace_forward(module: nn.Module, function: Callable[..., Any]) -> None:
    """Set a module's forward method, to be called with the module first; its signature stays what it was.

    The function must keep what it needs on the module: a copy of the module, or one that is pickled and loaded, then
    has its own.
    """
    module.forward = Replaced(module, function)


def _inputs(model: Any, folded: Folded) -> dict[str, Any]:
    return {**folded.inputs(model.config._attn_implementation, next(model.parameters()).dtype), "use_cache": False}
