"""The real vLLM beside the trainer: how far their log-probabilities are apart, and what a hand-over takes.

python -m tests.support.vllm_measured .vllm/bin/python [--large]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from rlhf.models.roles import Roles
from rlhf.policies.completion import Completion
from rlhf.policies.settings import SamplingSettings
from rlhf.policies.vllm.sampler import VllmSampler
from rlhf.prefix_sharing.head import completion_log_probs
from rlhf.prefix_sharing.layout import lay_out
from tests.support.models import strengthened
from tests.support.ppo import make_roles

PROMPTS = [[7, 8, 9] * 8, [11], [5, 6], [12, 13, 14, 15]]
SEEDS = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 2**63 - 1]]


class Update(NamedTuple):
    """What one update of the policy showed."""

    gap: float
    """Mean |log π_sampler − log π_trainer| of a token, nats."""
    largest: float
    moved: float
    """Mean |log π_sampler − log π_reference| of a token: how far off the weights of the start would be."""
    handed_over: float
    """Seconds."""
    sampled: float


def save_llama(folder: Path, tokenizer=None, *, vocabulary: int = 355, width: int = 64, layers: int = 2) -> Path:
    """A random Llama with tied embeddings, whose heads are as large as vLLM wants them on a CPU."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary if tokenizer is None else len(tokenizer), hidden_size=width,
        intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=width // 32,
        num_key_value_heads=max(1, width // 64), max_position_embeddings=256, tie_word_embeddings=True,
        pad_token_id=1, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    if tokenizer is not None:
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        tokenizer.save_pretrained(folder)
    strengthened(LlamaForCausalLM(config), 6.0 if width < 256 else 2.0).save_pretrained(folder)
    return folder


@torch.no_grad()
def learn(roles: Roles, step: float = 0.1) -> None:
    """Move the policy somewhere, as an optimizer step does."""
    adapter = roles.shared
    for name, one in roles.named_parameters():
        if "lora_B.default" in name or (not adapter and name.startswith("policy")):
            one.add_(step * one.std().clamp(min=0.02 if adapter else 0.0) * torch.randn_like(one))


@torch.no_grad()
def distances(roles: Roles, results: list[list[Completion]], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """|log π_sampler − log π| of every token under the policy and under the reference, nats."""
    folded = lay_out(PROMPTS, [[one.ids for one in row] for row in results], pad=1)
    completions = [one for row in results for one in row]
    said = torch.zeros(folded.mask_BT.shape)
    for row, one in enumerate(completions):
        said[row, : len(one.ids)] = torch.tensor(one.log_probs)
    found = []
    for role in (roles.policy_model, roles.reference):
        with role() as model:
            log_probs, _ = completion_log_probs(model, folded, temperature)
        found.append((said - log_probs)[folded.mask_BT].abs())
    return found[0], found[1]


def measured(python: str, base: Path, folder: Path, adapter: bool, updates: int = 3) -> tuple[float, list[Update]]:
    """Seconds until a server samples for the first time, and what updates of the policy showed then.

    The last update changes nothing, and must sample what the one before it did.
    """
    roles = make_roles(base, adapter)
    settings = SamplingSettings(
        max_new_tokens=16, max_length=64, temperature=0.7, sampler="vllm", vllm_python=python, vllm_memory=0.3
    )
    sampler = VllmSampler(roles, [2], settings, folder)
    begun = time.monotonic()
    before = sampler(PROMPTS, SEEDS)
    started, rows = time.monotonic() - begun, []
    try:
        for update in range(updates):
            if update + 1 < updates:
                learn(roles, 0.5)
            begun = time.monotonic()
            sampler._hand_over()
            middle = time.monotonic()
            served, rows_of = sampler.served, [(p, s) for p, row in zip(PROMPTS, SEEDS, strict=True) for s in row]
            flat = iter(sampler._sampled(served, rows_of))
            results = [[next(flat) for _ in row] for row in SEEDS]
            ended = time.monotonic()
            ours, reference = distances(roles, results, 0.7)
            rows.append(Update(
                ours.mean().item(), ours.max().item(), reference.mean().item(), middle - begun, ended - middle
            ))  # fmt: skip
            if update + 1 == updates:
                assert results == before, "the same weights, prompts and seeds give other completions"
            before = results
    finally:
        sampler.close()
    return started, rows


def main(python: str, large: str = "") -> None:
    """Print a table."""
    sizes = {"0.1M": {}, **({"106M": {"vocabulary": 32000, "width": 768, "layers": 12}} if large else {})}
    print("| Model | Trained | Until the first sample | Hand-over | 16 completions of 16 tokens | Gap, mean ", end="")
    print("| largest | To the start |")
    print("|---|---|---|---|---|---|---|---|")
    for name, size in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            base = save_llama(Path(folder) / "base", **size)
            for adapter in (True, False):
                started, rows = measured(python, base, Path(folder), adapter)
                row = rows[1]
                print(
                    f"| {name} | {'LoRA' if adapter else 'all weights'} | {started:.0f} s | {row.handed_over:.2f} s "
                    f"| {row.sampled:.2f} s | {row.gap:.1e} | {row.largest:.1e} | {row.moved:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
