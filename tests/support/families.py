"""Random models of the families that are said to work, a few thousand weights each."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)

from tests.support.models import strengthened

VOCABULARY = 60
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 1,
    "bos_token_id": None, "eos_token_id": 2,
}  # fmt: skip
"""Grouped queries wherever a family has them."""

FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, pad_token_id=1, eos_token_id=2,
        bos_token_id=None, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    ),
    "mistral": MistralConfig(**SMALL, sliding_window=64),
    "gemma": GemmaConfig(**SMALL, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, sliding_window=64),
    "gemma3": Gemma3TextConfig(
        **SMALL, head_dim=8, layer_types=["sliding_attention", "full_attention"], sliding_window=64
    ),
    "phi": PhiConfig(**SMALL, attention_dropout=0.0),
    "phi3": Phi3Config(**SMALL, attention_dropout=0.0, resid_pdrop=0.0),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "neox": GPTNeoXConfig(**{**SMALL, "num_key_value_heads": 4}),
}  # fmt: skip


def causal(family: str, dtype: torch.dtype = torch.float32, attention: str | None = None) -> PreTrainedModel:
    """A language model of a family, its weights drawn from one seed."""
    return _made(AutoModelForCausalLM, FAMILIES[family], dtype, attention)


def scorer(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A reward model of a family, one label."""
    config = type(FAMILIES[family]).from_dict({**FAMILIES[family].to_dict(), "num_labels": 1})
    return _made(AutoModelForSequenceClassification, config, dtype, None)


def _made(kind: Any, config: PretrainedConfig, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    set_seed(0)
    given = {"attn_implementation": attention} if attention else {}
    if dtype == torch.float64:
        given["experts_implementation"] = "eager"  # the grouped product knows no double precision
    model = kind.from_config(copy.deepcopy(config), dtype=dtype, **given)
    return strengthened(model.train(), 4.0)
