"""How a policy is sampled.

The config layer reads the fields from this source, so annotations stay simple.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


@dataclass
class SamplingSettings:
    """What a policy needs to know to act; part of the settings of stages that have it write."""

    max_new_tokens: int = 128
    """Longest completion, in tokens. More costs time and memory in proportion; too few cut most completions (see
    `truncated`). Usually 64 to 1024."""
    max_length: int | None = None
    """Longest prompt and completion together, in tokens: prompts that leave no room for `max_new_tokens` are dropped.
    Null takes what the model has positions for. Less saves memory and drops more prompts. Kinds of policy that do not
    write behind their input (`label`, `seq2seq`) cut the input itself to this length."""
    temperature: float = 1.0
    """Divides the logits in sampling and in every log-probability. More explores more and writes worse text; below 0.5
    the completions of a prompt become alike and there is little to learn from. Usually 0.7 to 1."""
    sampler: str = "transformers"
    """What samples: `transformers` in the stage's process, or `vllm` on the same GPU, which is faster where
    completions are long."""
    sampling_batch_size: int = 64
    """Completions that transformers samples at once. More is faster until memory ends, and changes no completion.
    Usually 16 to 256."""
    vllm_memory: float = 0.3
    """Share of the GPU's memory for vLLM, its copy of the weights and its cache. More samples faster and leaves less to
    training. Usually 0.2 to 0.5."""


def sampler_problem(settings: SamplingSettings, processes: int) -> str | None:
    """Why the sampler of the settings cannot sample here, beginning with the field; None where it can."""
    if settings.sampler != "vllm":
        return None
    if importlib.util.find_spec("vllm") is None:
        return "sampler: vllm is not installed (pip install vllm)"
    return "sampler: vllm runs on one GPU in one process; on several use transformers" if processes > 1 else None
