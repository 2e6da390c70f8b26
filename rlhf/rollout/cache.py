"""A key-value cache that is written in place, and joined from prompts of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A cache layer with room for what is to come.

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
        self._stores = [self._roomy(keys, room), self._roomy(values, room)]
        self._show()

    @staticmethod
    def _roomy(states: torch.Tensor, room: int) -> torch.Tensor:
        *outer, length, size = states.shape
        store = states.new_empty(*outer, length + room, size)
        store[..., :length, :] = states
        return store

    def _show(self) -> None:
        self.keys, self.values = (store[..., : self._length, :] for store in self._stores)

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
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        self._stores = [self._roomy(states[indices], self._room) for states in (self.keys, self.values)]
        self._show()


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps all keys and values, so that caches can be joined and written in place."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def join(caches: Sequence[DynamicCache], samples: int, room: int) -> DynamicCache:
    """One cache from those of several batches of prompts, aligned at their ends.

    Args:
        caches: Caches of plain layers, of left-padded prompts.
        samples: How often each row is repeated.
        room: Tokens that will follow at most.
    """
    longest = max(cache.get_seq_length() for cache in caches)
    result = DynamicCache()
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        keys, values = (
            torch.cat([_aligned(states, longest) for states in pair]).repeat_interleave(samples, dim=0)
            for pair in ([layer.keys for layer in layers], [layer.values for layer in layers])
        )
        result.layers.append(RoomyLayer(keys, values, room))
    return result


def _aligned(states: torch.Tensor, length: int) -> torch.Tensor:
    """States with zeros before them; a mask hides these."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[-2], 0))
