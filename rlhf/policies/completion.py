"""What a policy wrote to a prompt: one class for sampling, training and evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Completion:
    """One sampled completion of T tokens."""

    ids: list[int]
    """Its tokens, the end token included where there is one."""
    finished: bool
    """Whether it ended by itself and not at the limit."""
    log_probs: list[float] = field(default_factory=list)
    """Log-probability of each token under the distribution it was drawn from (temperature included), nats."""
    entropies: list[float] = field(default_factory=list)
    """Entropy of that distribution, nats/token; empty where the sampler does not know it."""
    text: str = ""
    """Its tokens as text, without special tokens; empty until `decoded` fills it in, as samplers know no tokenizer."""


def row_seed(*parts: Any) -> int:
    """A seed for one completion from whatever names it (project seed, rollout, row), 0 to 2^63 − 1."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Tokens as text, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def decoded(completions: Sequence[Sequence[Completion]], tokenizer: PreTrainedTokenizerBase) -> list[list[Completion]]:
    """The same completions with their text."""
    return [[replace(completion, text=decode(completion.ids, tokenizer)) for completion in row] for row in completions]
