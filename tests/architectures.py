"""Every causal architecture that transformers builds, at a size of some thousand weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, WINDOW, POSITIONS = 64, 8, 64
_MOST_WEIGHTS = 3_000_000

_SIZES: list[tuple[str, int]] = [
    (r"vocab_size$|^n_tokens$", VOCABULARY),
    (r"window|^attention_chunk_size$|keep_window|sliding_window_size", WINDOW),
    (
        r"max_position_embeddings|^n_positions$|^n_ctx$|max_seq_len|^max_target_positions$|^max_source_positions$",
        POSITIONS,
    ),
    (r"(num|n)_?(key_value|kv|query_groups)_heads$|num_kv_heads|num_key_value_heads|num_query_groups", 2),
    (r"mamba_d_head$|mamba_headdim$", 16),
    (r"d_head$", 8),
    (r"heads?$|attention_heads$|num_.*_heads", 4),
    (r"rotary_dim$", 4),
    (r"head_dim$|head_size$|_dim_per_head|kv_channels|^d_kv$", 8),
    (r"lora_rank$|_rank$", 16),
    (r"num_layers|n_layers?$|_layers$|^num_hidden_layers$", 2),
    (r"experts_per_tok|_top_?k$|^top_?k$", 2),
    (r"shared_experts$", 1),
    (r"^n_group$|^topk_group$|^num_expert_group", 1),
    (r"experts$", 4),
    (r"intermediate|ffn|inner|_mlp_|^d_ff|mlp_dim", 48),
    (r"state_size|^ssm_.*size|d_state$", 8),
    (
        r"hidden_size|^d_model$|^n_embd$|embed_dim$|embedding_size$|lru_width|word_embed_proj_dim|^dim$|_dim$|^hidden_dim",
        32,
    ),
]
"""Settings by name, the first that fits; whatever else stays as it is."""

_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "moe"],
        "num_hidden_layers": 3,
        "n_groups": 1,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_mem_blocks": 1,
        "mamba_ngroups": 1,
    },
    "xmod": {"default_language": "en_XX"},
}


def shrunk(name: str, **settings: Any) -> PretrainedConfig:
    """An architecture's config with small sizes, one layer of each kind that it has."""
    return _shrunk(type(AutoConfig.for_model(name))(), name, settings)


def _shrunk(default: PretrainedConfig, name: str, settings: dict[str, Any]) -> PretrainedConfig:
    given: dict[str, Any] = {}
    for key, value in vars(default).items():
        if isinstance(value, PretrainedConfig):
            given[key] = _shrunk(value, key, settings).to_dict()
        elif isinstance(value, bool):
            if key in ("use_sliding_window", "is_decoder"):
                given[key] = True
        elif isinstance(value, int) and not key.startswith("_"):
            if key.endswith(("_token_id", "token_index")):
                given[key] = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}.get(key, VOCABULARY - 1)
                continue
            small = next((size for pattern, size in _SIZES if re.search(pattern, key)), None)
            if small is not None and 0 < small < value:
                given[key] = small
    if given.get("num_key_value_heads") and hasattr(default, "kv_lora_rank"):
        given["num_key_value_heads"] = given["num_attention_heads"]
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    derived = {"layer_types", (getattr(default, "attribute_map", None) or {}).get("layer_types")}
    if kinds and not any(isinstance(getattr(type(default), one or "", None), property) for one in derived):
        given["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        given["num_hidden_layers"] = len(given["layer_types"])
    given.update(_OWN.get(name, {}))
    given.update({key: value for key, value in settings.items() if hasattr(default, key)})
    return type(default)(**given)


def built(name: str, **settings: Any) -> PreTrainedModel:
    """A model of an architecture, its weights drawn from one seed.

    Raises:
        Exception: Of any kind, where a small one cannot be made.
    """
    config = shrunk(name, **settings)
    with torch.device("meta"):
        count = sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())
    if count > _MOST_WEIGHTS:
        raise ValueError(f"{count / 1e6:.0f} million weights at the smallest sizes tried")
    set_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
