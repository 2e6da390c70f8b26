"""How a policy is sampled, and what a cut completion is worth.

The config layer reads the fields from this source, so annotations stay simple.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SamplingSettings:
    """What a policy needs to know to act; part of the settings of online training."""

    max_new_tokens: int = 128
    """Longest completion, in tokens. More costs time and memory in proportion; too few cut most completions, which then
    get no score of their own (see `truncated`). Usually 64 to 1024."""
    max_length: int | None = None
    """Longest prompt and completion together, in tokens: prompts that leave no room for `max_new_tokens` are dropped.
    Null takes what the model has positions for. Less saves memory and drops more prompts. Kinds of policy that do not
    write behind their input (`label`, `seq2seq`) cut the input itself to this length."""
    temperature: float = 1.0
    """Divides the logits in sampling and in every log-probability. More explores more and writes worse text; below 0.5
    the completions of a prompt become alike and there is little to learn from. Usually 0.7 to 1."""
    sampler: str = "transformers"
    """What samples: `transformers` in the trainer's process, or `vllm` on the same GPU, which is faster where
    completions are long."""
    sampling_batch_size: int = 64
    """Completions that transformers samples at once. More is faster until memory ends, and changes no completion.
    Usually 16 to 256."""
    vllm_memory: float = 0.3
    """Share of the GPU's memory for vLLM, its copy of the weights and its cache. More samples faster and leaves less to
    training. Usually 0.2 to 0.5."""
    truncated: str = "bootstrap"
    """What a completion cut at max_new_tokens is worth: what the critic expects of the rest (`bootstrap`), or its score
    as it stands (`score`), for models that never end. Without a critic it is always scored."""
    missing_eos_penalty: float = 1.0
    """Taken from the reward of a completion that was cut, in units of the (normalised) score. More makes the policy end
    sooner. Usually 0 to 2."""
    max_importance_weight: float = 2.0
    """Where another engine samples, or the weights are below float32: cap of the weight π_trainer/π_sampler of a token.
    Less trusts the sampler's tokens less where the two disagree; `.inf` truncates nothing. Usually 1 to 5."""
