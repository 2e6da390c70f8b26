"""Completions of one prompt as one row: the prompt stands once, and is computed once.

    separate rows          one row
    P P P a a              P P P a a b b b
    P P P b b b

Positions restart behind the prompt for each completion, and a 4-D mask lets a completion see the prompt and itself.
Every hidden state is then what it would be in a row of its own. Rows are padded on the right, so that a batch without
shared prompts is plain causal attention and needs no mask at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

_PADDING = -1
_SHARED = 0


@dataclass(frozen=True)
class Folded:
    """B sequences in R rows of L tokens."""

    ids_RL: torch.Tensor
    """Tokens, right-padded."""
    positions_RL: torch.Tensor
    """Position of each token in its own sequence."""
    segments_RL: torch.Tensor
    """0 in the prompt, k in the k-th completion of the row that has tokens, −1 in the padding."""
    states_BU: torch.Tensor
    """Where sequence b's hidden states stand in the flattened rows, U = T + 1: before each token of its completion, and
    after the last (repeated to the end of the row)."""
    mask_BT: torch.Tensor
    """Bool, true at the tokens of a completion."""

    @property
    def shares(self) -> bool:
        """Whether any row holds more than one completion, so that a mask must keep them apart."""
        return bool((self.segments_RL > 1).any())

    def to(self, device: torch.device) -> Folded:
        """The same on a device."""
        return Folded(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def inputs(self, attention: str | None, dtype: torch.dtype) -> dict[str, Any]:
        """What a transformers model is called with.

        Args:
            attention: Its `_attn_implementation`: eager attention adds the mask, SDPA takes it as bool, FlexAttention
                in blocks.
            dtype: Type of its weights.
        """
        inputs: dict[str, Any] = {"input_ids": self.ids_RL, "position_ids": self.positions_RL}
        if self.shares and attention == "flex_attention":
            inputs["attention_mask"] = block_mask(self.segments_RL)
        elif self.shares:
            visible = visible_pairs(self.segments_RL)
            if attention == "eager":
                visible = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
            inputs["attention_mask"] = visible
        return inputs


def lay_out(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    pad: int,
    widest: int | None = None,
) -> Folded:
    """Lay out prompts and their completions.

    Args:
        prompts: Token ids of each prompt, at least one token.
        completions: For each prompt the token ids of its completions.
        pad: Token that fills rows up.
        widest: Most tokens of a row that completions share (see `support.widest`); 0 is a row for each completion.

    Returns:
        The layout; its sequences are the completions in order.

    Raises:
        ValueError: A prompt is empty: nothing would predict the first token.
    """
    if not all(map(len, prompts)):
        raise ValueError("an empty prompt has no state that predicts the first token")
    rows = [
        (prompt, row)
        for prompt, group in zip(prompts, completions, strict=True)
        for row in _rows(len(prompt), group, widest)
    ]
    width = max(len(prompt) + sum(map(len, row)) for prompt, row in rows)
    longest = max(len(completion) for _, row in rows for completion in row)
    masked = any(sum(map(bool, row)) > 1 for _, row in rows)
    ids, positions, segments = [], [], []
    states: list[list[int]] = []
    lengths: list[int] = []
    for number, (prompt, row) in enumerate(rows):
        tokens, places, owners = list(prompt), list(range(len(prompt))), [_SHARED] * len(prompt)
        segment = 0
        for completion in row:
            length = len(completion)
            segment += bool(completion)
            first, begin = number * width + len(prompt) - 1, number * width + len(tokens)
            before = [first, *range(begin, begin + length)]
            states.append(before + before[-1:] * (longest - length))
            lengths.append(length)
            tokens += completion
            places += range(len(prompt), len(prompt) + length)
            owners += [segment] * length
        filling = width - len(tokens)
        ids.append(tokens + [pad] * filling)
        # Padding's positions: without a mask they count on, as transformers takes a restart for packed sequences and
        # builds a mask; under a mask they are 0, as a row of several completions is longer than any sequence, and there
        # may be no positions beyond the longest.
        positions.append(places + ([0] * filling if masked else list(range(len(tokens), width))))
        segments.append(owners + [_PADDING] * filling)
    return Folded(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(segments),
        torch.tensor(states),
        torch.arange(longest)[None] < torch.tensor(lengths)[:, None],
    )


def _rows(prompt: int, completions: Sequence[Sequence[int]], widest: int | None) -> list[list[Sequence[int]]]:
    """Completions of a prompt of so many tokens, row by row: as many in each as there is room for."""
    rows: list[list[Sequence[int]]] = [[]]
    for completion in completions:
        if rows[-1] and widest is not None and prompt + sum(map(len, rows[-1])) + len(completion) > widest:
            rows.append([])
        rows[-1].append(completion)
    return rows


def visible_pairs(segments_RL: torch.Tensor) -> torch.Tensor:
    """Which token sees which: [R, 1, L, L], true where query (third axis) sees key (last axis).

    A key is visible if it stands no later and belongs to the prompt or to the query's own completion. Padding sees
    itself: attention over nothing would be NaN.
    """
    at_L = torch.arange(segments_RL.shape[1], device=segments_RL.device)
    return _sees(at_L[:, None], at_L, segments_RL[:, :, None], segments_RL[:, None, :])[:, None]


def block_mask(segments_RL: torch.Tensor) -> BlockMask:
    """The same for FlexAttention, which leaves out blocks in which nothing is visible, and never holds all pairs."""

    def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return _sees(query, key, segments_RL[row, query], segments_RL[row, key])

    rows, length = segments_RL.shape
    return create_block_mask(
        sees, rows, None, length, length, device=str(segments_RL.device), _compile=segments_RL.is_cuda
    )


def _sees(
    query_at: torch.Tensor, key_at: torch.Tensor, query_segment: torch.Tensor, key_segment: torch.Tensor
) -> torch.Tensor:
    return (query_at >= key_at) & ((key_segment == _SHARED) | (key_segment == query_segment))
