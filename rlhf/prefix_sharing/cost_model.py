"""What a batch of rows costs a model, and which rows are best run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

_CALLS = {"cpu": 2.5e7}
"""What one more pass through a layer costs besides its tokens, in products that the device does meanwhile: half a
millisecond of calls, measured on two cores."""
_GRADIENTS = {"cpu": 40}
"""Tokens whose products take as long as adding once more to the gradients of all weights, measured on two cores."""
_CAUSAL = 2
"""Products of a pair of tokens, in units of the states' width, where attention leaves out what comes later."""
_PAIRS = {"cpu": 4}
"""The same under a mask: all pairs are computed."""
_ELSEWHERE = {"calls": 5e10, "gradients": 250, "pairs": 8}
"""The same on a GPU, by estimate: a dozen kernels a layer at 5 µs, a bandwidth of 3 TB/s, an attention kernel that is
half as fast with a mask."""


@dataclass(frozen=True)
class Cost:
    """Products (FLOPs) of a layer's forward pass."""

    parameters: float
    """Of a layer's matrices."""
    width: int
    """Of its states."""
    calls: float
    """Of a pass however short."""
    gradients: float
    """Of a backward pass however short."""
    pairs: float
    """Of two tokens that a mask keeps apart or together, in units of the width."""

    @classmethod
    def of(cls, backbone: PreTrainedModel, device: str | None = None) -> Cost:
        """What a layer of this backbone costs on a type of device; None takes the one that it is on."""
        config: PretrainedConfig = backbone.config.get_text_config()
        embeddings = {id(module.weight) for module in backbone.modules() if isinstance(module, nn.Embedding)}
        weights = [weight for weight in backbone.parameters() if weight.dim() > 1 and id(weight) not in embeddings]
        sizes = [
            getattr(weight, "ds_numel", weight.numel()) for weight in weights
        ]  # DeepSpeed leaves empty tensors behind
        parameters = sum(sizes) / config.num_hidden_layers
        trained = sum(size for weight, size in zip(weights, sizes, strict=True) if weight.requires_grad)
        trained /= config.num_hidden_layers
        kind = device or next(backbone.parameters()).device.type
        blocks = config._attn_implementation == "flex_attention"  # leaves out what a mask hides
        return cls(
            parameters, config.hidden_size, _CALLS.get(kind, _ELSEWHERE["calls"]),
            2 * trained * _GRADIENTS.get(kind, _ELSEWHERE["gradients"]),
            _CAUSAL if blocks else _PAIRS.get(kind, _ELSEWHERE["pairs"]),
        )  # fmt: skip

    def rows(self, number: int, length: int, shared: bool) -> float:
        """So many rows padded to a length: 2 · parameters a token, and attention among its pairs.

        Args:
            number: Rows.
            length: Tokens of the longest.
            shared: Whether a mask is needed: then both halves of the square are computed.
        """
        pairs = (self.pairs if shared else _CAUSAL) * self.width * length
        return number * length * (2 * self.parameters + pairs)

    def cut(self, lengths: Sequence[int], shared: bool, backward: bool) -> list[list[int]]:
        """Rows of like length together, so that padding and starts cost least.

        c(n) = min over k < n of c(k) + start + rows(n − k, length of the n-th), rows from short to long.

        Args:
            lengths: Tokens of each row.
            shared: Whether the rows need a mask.
            backward: Whether there will be a backward pass.

        Returns:
            Indices of the rows of each batch.
        """
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        start = self.calls + (self.gradients if backward else 0.0)
        best, begin = np.zeros(len(order) + 1), [0] * (len(order) + 1)
        for end in range(1, len(order) + 1):
            a_row = self.rows(1, lengths[order[end - 1]], shared)
            costs = best[:end] + start + a_row * np.arange(end, 0, -1)
            begin[end] = int(costs.argmin())
            best[end] = costs[begin[end]]
        batches, end = [], len(order)
        while end:
            batches.append(order[begin[end] : end])
            end = begin[end]
        return batches[::-1]
