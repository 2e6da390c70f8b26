"""How a policy is sampled.

The config layer reads the fields from this source, so annotations stay simple.
"""

from __future__ import annotations

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
    """What samples: `transformers` in the stage's process, or a `vllm` server, which is faster where completions are
    long. A server needs `vllm_python` or `vllm_url`."""
    sampling_batch_size: int = 64
    """Completions that transformers samples at once. More is faster until memory ends, and changes no completion.
    Usually 16 to 256."""
    vllm_python: str | None = None
    """Interpreter of an environment with vLLM, such as `.vllm/bin/python`: the stage starts a server from it, on this
    machine and for this user alone, and ends it."""
    vllm_url: str | None = None
    """A vLLM server that runs, such as `http://127.0.0.1:8000` or `unix:/path/to/a/socket`; docs/vllm.md says how to
    start it. The environment variable VLLM_API_KEY holds its key, if it has one."""
    vllm_folder: str | None = None
    """Folder in which the server is handed weights. Null takes the stage's own; a server on another machine needs one
    that both see. In memory, such as `/dev/shm`, a hand-over is faster and takes the memory of the weights."""
    vllm_memory: float = 0.3
    """Share of the GPU's memory for a server that the stage starts, its copy of the weights and its cache. More samples
    faster and leaves less to training. Usually 0.2 to 0.5."""
