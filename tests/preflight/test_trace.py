"""Counting bytes without computing: what fake tensors hold is what real ones hold."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config.project import ModelConfig
from rlhf.preflight.models import build
from rlhf.preflight.trace import LiveBytes


def test_live_bytes_by_hand():
    given = torch.nn.Linear(8, 4, bias=False)
    with LiveBytes(given) as live:
        first = torch.zeros(2, 8)  # 64 bytes
        second = given(first)  # 32; a view of the weight is no storage of its own
        assert live.now == 64 + 32
        del first
        assert live.now == 64 + 32  # kept for the backward pass
        second.sum().backward()  # the sum, its gradient spread over 32 bytes, and that of the weight
        del second
    assert live.peak >= 64 + 32 + 4 * 32
    assert live.now < live.peak


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_counted_is_what_a_real_pass_holds(tiny_llama, attention):
    built = build(ModelConfig(name_or_path=str(tiny_llama), attn_implementation=attention), None, False, True)
    fake = built.kept(rows=2, length=16)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation=attention).train()
    ids = torch.zeros(2, 16, dtype=torch.long)
    with LiveBytes(model) as live:
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        held = live.now
        states.sum().backward()
    assert abs(held - fake.forward) <= 64
    assert abs(live.peak - fake.peak) <= 64


def test_rows_add_up_and_masks_cost(tiny_llama):
    built = build(ModelConfig(name_or_path=str(tiny_llama)), {"r": 2}, False, True)
    one, two = (built.kept(rows=rows, length=32) for rows in (1, 2))
    assert two.forward == pytest.approx(2 * one.forward, rel=0.02)
    masked = built.kept(rows=1, length=32, mask=True)
    assert masked.forward > one.forward
    assert built.kept(rows=1, length=32, backward=False).peak < one.forward
    assert built.kept(rows=1, length=32, checkpoint=True).forward < one.forward
