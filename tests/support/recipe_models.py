"""The configs of the models that recipes name, as the hub has them: what a test without a network knows of them."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaConfig, ModernBertConfig, PretrainedConfig, Qwen2Config, Qwen3Config


def _qwen3(hidden: int, inner: int, layers: int, heads: int, tied: bool = True) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151936, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        tie_word_embeddings=tied, architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip


CONFIGS: dict[str, PretrainedConfig] = {
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16),
    "Qwen/Qwen3-0.6B-Base": _qwen3(1024, 3072, 28, 16),
    "Qwen/Qwen3-1.7B-Base": _qwen3(2048, 6144, 28, 16),
    "Qwen/Qwen3-4B-Instruct-2507": _qwen3(2560, 9728, 36, 32),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32, tied=False),
    "Qwen/Qwen2.5-0.5B-Instruct": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    ),
    "answerdotai/ModernBERT-base": ModernBertConfig(architectures=["ModernBertForMaskedLM"]),
}  # fmt: skip
"""Model -> its config."""
PARAMETERS = {
    "Qwen/Qwen3-0.6B": 596_049_920, "Qwen/Qwen3-0.6B-Base": 596_049_920, "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096, "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768, "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}  # fmt: skip
"""Model -> its parameters, as the hub counts them in its safetensors; a config that has others is not the model's."""


def write(folder: Path) -> dict[str, str]:
    """Write the configs into folders of their own; model -> folder."""
    for name, config in CONFIGS.items():
        config.save_pretrained(folder / name)
    return {name: str(folder / name) for name in CONFIGS}
