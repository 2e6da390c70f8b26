"""The language-model head only where a label is, on any device.

TRL's fused head leaves out positions without a label on a GPU, but projects every position on a CPU: prompts and
padding too, which are most of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl.kernels import chunked_logprob

from rlhf.data.tokenize import IGNORED
from rlhf.models.adapters import without_peft
from rlhf.prefix_sharing.forward import head_at, replace_forward

_TILE = 256
"""Positions that the head projects at once on a CPU. TRL's 4096 are a GPU's: there a tile of 1000 positions and 8000
tokens is fetched from memory for each of twenty operations, and took twice as long (measured on two cores)."""


def head_where_labelled(model: PreTrainedModel | PeftModel) -> None:
    """Give TRL's fused head only the states that predict a label; its outputs are the same, zero elsewhere.

    Args:
        model: A causal language model that has TRL's fused head (`trl.trainer.utils.add_fused_lm_head`): that of an
            SFT or DPO trainer, once the trainer is made.

    Raises:
        ValueError: It has no fused head.
    """
    whole = without_peft(model)
    fused = vars(whole).get("forward")
    if fused is None:
        raise ValueError(f"{type(whole).__name__} has no fused head of TRL's")
    if next(whole.parameters()).device.type == "cpu":
        chunked_logprob.TOKEN_CHUNK_SIZE = _TILE
    whole._fused_forward = fused
    replace_forward(whole, _forward)


def _forward(
    self: Any, *args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs: Any
) -> Any:
    """What such a model does when it is called: `shift_labels` of one row, in which every position has a label."""
    wanted_BT = labels[:, 1:] != IGNORED if fused_lm_head and labels is not None else None
    if wanted_BT is None or not wanted_BT.any():
        given = {} if labels is None else {"labels": labels}
        return self._fused_forward(*args, fused_lm_head=fused_lm_head, **given, **kwargs)
    row_K, before_K = wanted_BT.nonzero(as_tuple=True)
    width = labels.shape[1]
    with head_at(self, row_K * width + before_K):
        found = self._fused_forward(*args, fused_lm_head=True, shift_labels=labels[:, 1:][wanted_BT][None], **kwargs)
    spread = {
        name: value.new_zeros(wanted_BT.shape).masked_scatter(wanted_BT, value)
        for name, value in found.items()
        if isinstance(value, torch.Tensor) and value.shape == (1, len(row_K))
    }
    return dataclasses.replace(found, **spread)
