"""Which rows are best run together."""

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from rlhf.prefix_sharing.cost_model import Cost

FREE = Cost(parameters=100, width=1, calls=0, gradients=0, pairs=4)
"""Starting costs nothing: any padding is too much."""


def padded(lengths, batches):
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)


def test_a_row_by_hand():
    """Two rows of three tokens: six tokens of 2 · 100 products, and pairs: 4 or 2 for each of three keys."""
    assert FREE.rows(2, 3, shared=True) == 2 * 3 * (200 + 4 * 3)
    assert FREE.rows(2, 3, shared=False) == 2 * 3 * (200 + 2 * 3)


def test_without_a_price_nothing_is_padded():
    lengths = [5, 9, 5, 7, 9]
    assert padded(lengths, FREE.cut(lengths, False, False)) == sum(lengths)


def test_at_a_high_price_all_run_together():
    dear = Cost(parameters=100, width=1, calls=1e9, gradients=0, pairs=4)
    assert dear.cut([5, 90, 7], False, False) == [[0, 2, 1]]


def test_gradients_cost_only_where_there_is_a_backward_pass():
    cost = Cost(parameters=100, width=1, calls=0, gradients=1e9, pairs=4)
    assert len(cost.cut([5, 90], False, backward=True)) == 1
    assert len(cost.cut([5, 90], False, backward=False)) == 2


def test_no_cut_is_cheaper():
    """Held against all ways to cut eight rows in order of length."""
    lengths = torch.randint(1, 60, (8,), generator=torch.Generator().manual_seed(0)).tolist()
    cost = Cost(parameters=100, width=2, calls=3000, gradients=500, pairs=4)

    def price(batches):
        return sum(3500 + cost.rows(len(batch), max(lengths[row] for row in batch), True) for batch in batches)

    order = sorted(range(8), key=lambda row: lengths[row])
    ways = []
    for chosen in range(2**7):
        ends = [at + 1 for at in range(7) if chosen >> at & 1] + [8]
        ways.append([order[begin:end] for begin, end in zip([0, *ends], ends, strict=False)])
    found = cost.cut(lengths, True, True)
    assert sorted(row for batch in found for row in batch) == list(range(8))
    assert price(found) == pytest.approx(min(map(price, ways)))
    assert 1 < len(found) < 8


def test_no_rows():
    assert FREE.cut([], False, False) == []


def test_of_a_model():
    """Per layer: four square matrices of 8 × 8 and three of 8 × 16; nothing is added to gradients of frozen weights."""
    model = LlamaModel(
        LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2)
    )
    cost = Cost.of(model)
    assert cost.parameters == 4 * 64 + 3 * 128
    assert cost.gradients == 40 * 2 * cost.parameters
    assert Cost.of(model.requires_grad_(False)).gradients == 0
