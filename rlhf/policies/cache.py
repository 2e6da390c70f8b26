"""The cache of a sampled batch: joined from prompts of different lengths, and written in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)


class PreallocatedLayer(DynamicLayer):
    """A cache layer with memory for the tokens to come.

    transformers' DynamicLayer makes a new tensor for each token, which copies the whole cache at every step; here keys
    and values are written behind those that are there, and the layer shows a view of what is filled.

    Args:
        keys: [B, heads, length, d].
        values: [B, heads, length, d].
        room: Tokens that will follow at most.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._room, self._length = room, keys.shape[-2]
        self._stores = [self._preallocated(keys, room), self._preallocated(values, room)]
        self._show()

    @staticmethod
    def _preallocated(states: torch.Tensor, room: int) -> torch.Tensor:
        *outer, length, size = states.shape
        store = states.new_empty(*outer, length + room, size)
        store[..., :length, :] = states
        return store

    def _show(self) -> None:
        self.keys, self.values = self._filled()

    def _filled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of all keys and values that are there."""
        keys, values = (store[..., : self._length, :] for store in self._stores)
        return keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new states behind the others; returns all keys and all values."""
        new = key_states.shape[-2]
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[..., self._length : self._length + new, :] = states
        self._length += new
        self._room -= new
        self._show()
        return self._filled()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        self._stores = [self._preallocated(states[beam_idx], self._room) for states in self._filled()]
        self._show()


def is_recurrent(cache: DynamicCache) -> bool:
    """Whether any layer keeps a state that has run over all tokens: no mask takes padding out of it."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def has_attention(cache: DynamicCache) -> bool:
    """Whether any layer looks back at tokens, so that padding must be hidden from it."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def join(caches: Sequence[DynamicCache], rows_B: torch.Tensor, room: int) -> DynamicCache:
    """One cache from those of several batches of prompts, aligned at their ends.

    Args:
        caches: Caches of left-padded prompts; their layers are used up.
        rows_B: For each row of the result its prompt, counted through all batches.
        room: Tokens that will follow at most.
    """
    result = DynamicCache()
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        layer = _joined(layers)
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            layer = PreallocatedLayer(layer.keys[rows_B], layer.values[rows_B], room)
        else:
            layer.reorder_cache(rows_B)
        result.layers.append(layer)
    return result


def _joined(layers: Sequence[Any]) -> Any:
    """The first layer with the rows of all; what it keeps of each token is aligned at the end, zeros before it."""
    first = layers[0]
    if len(layers) == 1:
        return first
    if isinstance(first, DynamicLayer) and first.is_initialized:
        first.keys, first.values = (_aligned([getattr(layer, name) for layer in layers]) for name in ("keys", "values"))
    if isinstance(first, DynamicSlidingWindowLayer):
        first.cumulative_length = max(layer.cumulative_length for layer in layers)
    if isinstance(first, DynamicIndexedLayer) and first.is_indexer_initialized:
        first.indexer_keys = _aligned([layer.indexer_keys for layer in layers])
    if isinstance(first, LinearAttentionCacheLayerMixin):
        for name in ("conv_states", "recurrent_states"):
            states = [getattr(layer, name) for layer in layers]
            made = {key for key, value in states[0].items() if value is not None}
            setattr(first, name, {**states[0], **{key: torch.cat([state[key] for state in states]) for key in made}})
    return first


def _aligned(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """States [B, …, length, d] in one tensor, zeros before the shorter ones; a mask hides these."""
    longest = max(state.shape[-2] for state in states)
    return torch.cat([torch.nn.functional.pad(state, (0, 0, longest - state.shape[-2], 0)) for state in states])
