"""What a batch of rows costs a model, and which rows are best run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PretrainedConfig

_START = {"cpu": 5e7, "cuda": 5e10}
"""What one more pass through a layer costs besides its tokens, in the products that the device does meanwhile: calls on
a CPU, measured with two threads; kernel launches on a GPU, by estimate."""


@dataclass(frozen=True)
class Cost:
    """Products (FLOPs) of a layer's forward pass."""

    parameters: float
    """Of a layer's matrices."""
    width: int
    """Of its states."""
    start: float
    """Of a pass however short."""

    @classmethod
    def of(cls, backbone: nn.Module) -> Cost:
        """What a layer of this backbone costs where it is now."""
        config: PretrainedConfig = backbone.config.get_text_config()
        embeddings = {id(module.weight) for module in backbone.modules() if isinstance(module, nn.Embedding)}
        matrices = [one for one in backbone.parameters() if one.dim() > 1 and id(one) not in embeddings]
        parameters = sum(one.numel() for one in matrices) / config.num_hidden_layers
        start = _START.get(next(backbone.parameters()).device.type, _START["cuda"])
        return cls(parameters, config.hidden_size, start)

    def rows(self, number: int, length: int, shared: bool) -> float:
        """So many rows padded to a length: 2 · parameters a token, and attention among its pairs.

        Args:
            number: Rows.
            length: Tokens of the longest.
            shared: Whether a mask is needed: then both halves of the square are computed.
        """
        pairs = (4 if shared else 2) * self.width * length
        return number * length * (2 * self.parameters + pairs)

    def cut(self, lengths: Sequence[int], shared: bool) -> list[list[int]]:
        """Rows of like length together, so that padding and starts cost least.

        c(n) = min over k < n of c(k) + start + rows(n − k, length of the n-th), rows from short to long.

        Args:
            lengths: Tokens of each row.
            shared: Whether the rows need a mask.

        Returns:
            Indices of the rows of each batch.
        """
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        best, begin = np.zeros(len(order) + 1), [0] * (len(order) + 1)
        for end in range(1, len(order) + 1):
            a_row = self.rows(1, lengths[order[end - 1]], shared)
            costs = best[:end] + self.start + a_row * np.arange(end, 0, -1)
            begin[end] = int(costs.argmin())
            best[end] = costs[begin[end]]
        batches, end = [], len(order)
        while end:
            batches.append(order[begin[end] : end])
            end = begin[end]
        return batches[::-1]
