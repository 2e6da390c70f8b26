"""The arithmetic of benchmarks/: hand numbers, and what PyTorch counts."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import efficiency
import efficiency_tables
import gpu_page
import gpu_wheel

from rlhf.preflight import arithmetic
from rlhf.preflight.arithmetic import LLAMA_8B, LLAMA_70B, Model

TOY = Model(layers=2, hidden=8, intermediate=12, heads=4, kv_heads=2, vocabulary=50)


def llama(model: Model) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=model.vocabulary, hidden_size=model.hidden, intermediate_size=model.intermediate,
        num_hidden_layers=model.layers, num_attention_heads=model.heads, num_key_value_heads=model.kv_heads,
        tie_word_embeddings=model.tied, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def test_the_models_have_the_numbers_of_their_cards():
    assert LLAMA_8B.numbers == 8_030_261_248
    assert LLAMA_70B.numbers == 70_553_706_496
    assert TOY.numbers == sum(weight.numel() for weight in llama(TOY).parameters())
    adapted = get_peft_model(llama(TOY), LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert TOY.adapter(3) == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def test_operations_of_a_forward_pass_are_those_that_pytorch_counts():
    """Eager attention computes all pairs, T² of them, and ours counts T(T + 1)/2."""
    length = 6
    with FlopCounterMode(display=False) as counter:
        llama(TOY)(input_ids=torch.arange(length)[None], use_cache=False)
    pairs = TOY.layers * 4 * TOY.hidden * (length**2 - length * (length + 1) / 2)
    assert counter.get_total_flops() - pairs == arithmetic.forward_flops(TOY, length, logits=length)


def test_operations_of_ppo_in_passes():
    """Without attention and head: 40, 24 and 56 operations a number and token, as docs/ppo.md counts them."""
    model, numbers, attention = Model(1, 8, 12, 4, 4, 1), 4 * 64 + 3 * 96, 4 * 8
    for lora, critic, per_number in ((True, "separate", 40), (True, "shared", 24), (False, "separate", 56)):
        flops = arithmetic.ppo_flops(model, [(1, 0)], lora=lora, epochs=4, critic=critic)
        assert flops == per_number * numbers + per_number / 2 * attention


def test_bytes_on_the_links():
    assert arithmetic.gathered(100, 2, 4) == 150
    assert arithmetic.reduced(100, 4, 2) == 400
    assert arithmetic.gathered(100, 2, 1) == 0


def test_bytes_in_memory():
    assert arithmetic.activations(TOY, 10, checkpointing=False) == 2 * 10 * 2 * (7 * 8 + 2 * 4 + 3 * 12)
    assert arithmetic.activations(TOY, 10, checkpointing=True) == 2 * 10 * (2 * 8 + 100)
    assert arithmetic.logits(TOY, 3) == 3 * 50 * 10
    assert LLAMA_8B.cache == 2 * 32 * 1024


def test_a_plan_by_hand():
    """8B SFT, all weights: float32 weights, gradients and two means, sharded over 8."""
    plan = efficiency.Plan("8B", "sft", False, 4, 1024, 1024)
    parts = efficiency.memory(plan)
    assert parts["weights"] == parts["gradients"] == 8_030_261_248 * 4 / 8
    assert parts["optimizer"] == 8_030_261_248
    row = efficiency.step(plan)
    assert row["received_bytes"] == (3 * 8_030_261_248 - 128_256 * 4096) * 2 * 7 / 8  # the head is not gathered again
    assert row["computed_flops"] == pytest.approx(row["needed_flops"] * 4 / 3)
    assert row["seconds"] == max(row["compute_seconds"], row["link_seconds"])
    assert efficiency.first_change(parts) == ""
    assert "adapter" in efficiency.first_change({**parts, "weights": 90e9})


def test_the_page_has_the_table_of_the_program(root):
    """docs/scale.md holds what benchmarks/efficiency.py computes now."""
    page = (root / "docs/scale.md").read_text(encoding="utf-8")
    rows = efficiency.results()
    for table in (efficiency.memory_table, efficiency.time_table):
        for line in table(rows, efficiency.MEMORY).splitlines():
            assert line in page
    assert gpu_page.section({}) in page  # no result of a GPU is there


def test_the_formulas_give_the_bytes_that_were_counted(root):
    """Norms and the value head, which the formulas leave out, are less than 1% of a small model."""
    sharding = json.loads((root / "benchmarks/results/sharding.json").read_text(encoding="utf-8"))
    rows = efficiency_tables.received(sharding)
    assert len(rows) == 12
    for name, formula, counted in rows:
        assert formula == pytest.approx(counted, rel=0.01), name


def test_a_wheel_keeps_one_cuda_library(tmp_path):
    wheel = tmp_path / "bitsandbytes-0.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in ("a.py", "libcuda130.so", "libcuda118.so", "libcpu.so"):
            file.writestr(name, name)
    gpu_wheel.reduce_wheel(wheel)
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == ["a.py", "libcuda130.so", "libcpu.so"]
    assert list(tmp_path.iterdir()) == [wheel]
