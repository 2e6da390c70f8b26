"""Forward passes over folded sequences: the head runs only where a reply token is predicted."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf.models.layout import Folded


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
    with head_at(model, folded.states_BS[:, :-1][folded.mask_BT]):
        return model(**_inputs(model, folded)).logits.flatten(0, -2).float()


def last_hidden(backbone: Any, folded: Folded) -> torch.Tensor:
    """Last hidden states, [R, L, d]."""
    return backbone(**_inputs(backbone, folded)).last_hidden_state


@contextlib.contextmanager
def head_at(model: PreTrainedModel, index_K: torch.Tensor) -> Iterator[None]:
    """Within, whatever is above the backbone sees only these positions of the flattened rows, as one row of K.

    A hook behind the backbone, so that whatever a model does with its states (heads, caps, scales) stays as it is.
    """

    def chosen(module: nn.Module, inputs: Any, output: Any) -> Any:
        return type(output)(last_hidden_state=output.last_hidden_state.flatten(0, 1)[index_K][None])

    handle = model.base_model.register_forward_hook(chosen)
    try:
        yield
    finally:
        handle.remove()


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Set a module's forward method, to be called with the module first; its signature stays what it was.

    The function must keep what it needs on the module. A closure would, in a copy of the module, refer to the original.
    Transformers looks at signatures to decide what to pass: positions, for one, in generation.
    """

    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    method.__signature__ = inspect.signature(type(module).forward)  # type: ignore[attr-defined]
    module.forward = MethodType(method, module)


def _inputs(model: Any, folded: Folded) -> dict[str, Any]:
    return {**folded.inputs(model.config._attn_implementation, next(model.parameters()).dtype), "use_cache": False}
