"""The architectures that can be written as GGUF exactly: what of a config they allow, its metadata, its tensors.

A model is named as llama.cpp names what it computes alike: Mistral without a sliding window is a Llama.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Metadata = dict[str, int | float]
"""Keys without the architecture's name before them."""


@dataclass(frozen=True)
class Architecture:
    """How models of one kind are written."""

    name: str
    """As GGUF names it."""
    metadata: Callable[[Any], Metadata]
    """Sizes, of the model's config."""
    requires: Mapping[str, tuple[Any, ...]]
    """Fields of the config, and the values without which the file would compute something else."""
    tensor: Callable[[str, Array, Any], Array] = lambda name, values, config: values
    """A tensor, by its name in GGUF, as the file has it."""


def unfit(config: Any) -> str | None:
    """Why a model cannot be written as GGUF; None where it can.

    Args:
        config: Its transformers config.
    """
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        return f"{config.model_type} cannot be written as GGUF here; {', '.join(sorted(ARCHITECTURES))} can"
    for name, values in known.requires.items():
        value = getattr(config, name, None)
        if value not in values:
            return f"its config has {name}: {value}, which its GGUF could not say; expected {values[0]}"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return f"its positions are scaled (rope_type: {rope['rope_type']}), which could not be read back to check it"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        return f"its attention sees {window} tokens only (sliding_window), which its GGUF could not say"
    return None


def head_size(config: Any) -> int:
    """Numbers of a query of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def permuted(weights: Array, heads: int) -> Array:
    """Rows of a query or key projection in llama.cpp's order for Llama.

    transformers rotates the first half of a head with the second, numbers i and i + d/2; llama.cpp neighbours, 2i and
    2i + 1.

    Args:
        weights: [heads · d, inputs].
        heads: Of this projection.
    """
    rows = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, rows, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def _sizes(config: Any) -> Metadata:
    size = head_size(config)
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "rope.dimension_count": size,
        "vocab_size": config.vocab_size,
    }


def _gpt2_sizes(config: Any) -> Metadata:
    return {
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        "vocab_size": config.vocab_size,
    }


def _llama_tensor(name: str, values: Array, config: Any) -> Array:
    for part, heads in (("attn_q.", config.num_attention_heads), ("attn_k.", config.num_key_value_heads)):
        if f".{part}" in name:
            return permuted(values, heads)
    return values


def _gpt2_tensor(name: str, values: Array, config: Any) -> Array:
    """GPT-2's layers hold their weights as inputs by outputs."""
    turned = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return np.ascontiguousarray(values.T) if name.endswith(turned) else values


_SILU = {"hidden_act": ("silu",)}
_LLAMA = Architecture(
    "llama", _sizes, {**_SILU, "attention_bias": (False, None), "mlp_bias": (False, None)}, _llama_tensor
)
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2", _sizes, _SILU),
    "qwen3": Architecture("qwen3", _sizes, {**_SILU, "attention_bias": (False,), "head_dim": (128,)}),
    "gpt2": Architecture(
        "gpt2", _gpt2_sizes,
        {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "n_positions": (1024,),
         "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
        _gpt2_tensor,
    ),
}  # fmt: skip
"""By transformers' name of the model. That of a head of qwen3 and the context of gpt2 are transformers' defaults: it
does not read them from a file."""
