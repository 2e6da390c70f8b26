"""TRL's fused head runs only where a label is, on any device.

On a GPU it leaves out positions without a label by itself; on a CPU it projects every position, prompts and padding
too, which are most of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from trl.kernels import chunked_logprob

from rlhf.data.tokenize import IGNORED
from rlhf.models.adapters import without_peft
from rlhf.prefix_sharing.forward import replace_forward
from rlhf.prefix_sharing.head import head_at

_TILE = 256
"""Positions that the head projects at once on a CPU. TRL's 4096 are a GPU's: there a tile of 1000 positions and 8000
tokens is fetched from memory for each of twenty operations, and took twice as long (measured on two cores)."""


@contextlib.contextmanager
def small_tiles(model: nn.Module) -> Iterator[None]:
    """Within, the fused head of a model on a CPU projects few positions at once, forwards and backwards.

    TRL reads the number from its module at every call; it is put back at the end.
    """
    before = chunked_logprob.TOKEN_CHUNK_SIZE
    if next(model.parameters()).device.type == "cpu":
        chunked_logprob.TOKEN_CHUNK_SIZE = _TILE
    try:
        yield
    finally:
        chunked_logprob.TOKEN_CHUNK_SIZE = before


def head_where_labelled(model: PreTrainedModel | PeftModel) -> None:
    """Give TRL's fused head only the states that predict a label; its outputs are the same, zero elsewhere.

    Whoever runs the model backwards does so within `small_tiles`, as forwards is done here.

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
    whole._fused_forward = fused
    replace_forward(whole, _forward)


def _forward(
    self: Any, *args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs: Any
) -> Any:
    """What such a model does when it is called: `shift_labels` of one row, in which every position has a label."""
    with small_tiles(self):
        return _run(self, *args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)


def _run(self: Any, *args: Any, fused_lm_head: bool, labels: torch.Tensor | None, **kwargs: Any) -> Any:
    if labels is None:
        return self._fused_forward(*args, fused_lm_head=fused_lm_head, **kwargs)
    wanted_BT = labels[:, 1:] != IGNORED
    if not (fused_lm_head and wanted_BT.any()):
        return self._fused_forward(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
    row_K, before_K = wanted_BT.nonzero(as_tuple=True)
    width = labels.shape[1]
    with head_at(self, row_K * width + before_K):
        output = self._fused_forward(*args, fused_lm_head=True, shift_labels=labels[:, 1:][wanted_BT][None], **kwargs)
    spread = {
        name: value.new_zeros(wanted_BT.shape).masked_scatter(wanted_BT, value)
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.shape == (1, len(row_K))
    }
    return dataclasses.replace(output, **spread)
