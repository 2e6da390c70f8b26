"""A finished run without training, and models whose outputs tell a wrong weight."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from rlhf.artifacts.json_files import write_json
from tests.support.projects import make_project
from tests.support.runs import tiny_run


@pytest.fixture(scope="session")
def sharp_llama(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random Llama with weights so large that its predictions are decided, and rows that blocks of 32 divide."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.15, pad_token_id=tiny_tokenizer.pad_token_id, eos_token_id=tiny_tokenizer.eos_token_id,
        bos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sharp")
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory, sharp_llama) -> Path:
    """A finished run of a project with a judge: sft, reward and dpo. Exports only read it."""
    folder = tmp_path_factory.mktemp("project")
    make_project(folder, sharp_llama)
    made, _ = tiny_run(folder, sharp_llama)
    write_json(made / "project.json", {"config": "../../project.yaml", "name": "tiny", "overrides": []})
    return made
