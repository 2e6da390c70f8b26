"""What stands above the backbone runs only where it is needed: at the positions that predict a completion's tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from rlhf.prefix_sharing.forward import model_inputs
from rlhf.prefix_sharing.layout import Folded


def completion_log_probs(
    model: Any, folded: Folded, temperature: float, entropies: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability of each token of the completions and, if wanted, the entropy there.

    The head runs only where such a token is predicted; logits of prompts are never computed.

    Args:
        model: A causal language model.
        folded: The sequences.
        temperature: Divides the logits.
        entropies: Whether entropies are wanted: they cost memory in the backward pass.

    Returns:
        log π and H, both [B, T] in nats, 0 at masked positions; H is None if not asked for.
    """
    mask_BT = folded.mask_BT
    tokens_K = folded.ids_RL.flatten()[folded.states_BU[:, 1:][mask_BT]]
    logits_KV = completion_logits(model, folded) / temperature
    log_norm_K = logits_KV.logsumexp(-1)
    log_probs_K = logits_KV.gather(1, tokens_K[:, None]).squeeze(1) - log_norm_K
    empty_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    log_probs_BT = empty_BT.masked_scatter(mask_BT, log_probs_K)
    if not entropies:
        return log_probs_BT, None
    finite_KV = logits_KV.clamp(min=torch.finfo(torch.float32).min)  # 0 · −inf where a token is ruled out
    expected_K = ((logits_KV - log_norm_K[:, None]).exp() * finite_KV).sum(-1)
    return log_probs_BT, empty_BT.masked_scatter(mask_BT, log_norm_K - expected_K)


def completion_logits(model: Any, folded: Folded) -> torch.Tensor:
    """Logits before each token of the completions, in the order of the mask's true positions: [K, V], float32."""
    index_K = folded.states_BU[:, :-1][folded.mask_BT]
    with head_at(model, index_K) as selection:
        logits = model(**model_inputs(model, folded)).logits.flatten(0, -2)
    return (logits if selection.made else logits[index_K]).float()


@dataclass
class Selection:
    """What `head_at` did."""

    made: bool = False
    """Whether states were selected: some models (OPT, BART's decoder) call another module than their `base_model`."""


@contextlib.contextmanager
def head_at(model: PreTrainedModel, index_K: torch.Tensor) -> Iterator[Selection]:
    """Within, whatever is above the backbone sees only these positions of the flattened rows, as one row of K.

    A hook behind the backbone does this, so that whatever a model does with its states (heads, caps, scales) stays as
    it is. All else that the backbone returns (router logits, a cache) is left alone.

    Args:
        model: A model with a head.
        index_K: Positions in the flattened rows.

    Yields:
        Whether positions were selected, once the model has been called; if not, its outputs are those of all positions.
    """
    selection = Selection()

    def select(module: nn.Module, inputs: Any, output: Any) -> Any:
        states = getattr(output, "last_hidden_state", None)
        if states is None:
            return output
        selection.made = True
        return _with_states(output, states.flatten(0, 1)[index_K][None])

    handle = model.base_model.register_forward_hook(select)
    try:
        yield selection
    finally:
        handle.remove()


def _with_states(output: ModelOutput, states: torch.Tensor) -> ModelOutput:
    """A backbone's output with other last hidden states, and all its other fields."""
    return type(output)(**{**output, "last_hidden_state": states})
