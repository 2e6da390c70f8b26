"""Sampling replies from a policy with transformers' `generate`, prompts of like length together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reply:
    """One sampled reply."""

    ids: tuple[int, ...]
    """Its tokens, the end token included where there is one."""
    text: str
    """Decoded, without special tokens."""
    finished: bool
    """Whether it ended by itself and not at the limit."""


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a reply: the tokenizer's EOS and those of the model's generation config."""
    more = getattr(model.generation_config, "eos_token_id", None)
    more = [] if more is None else [more] if isinstance(more, int) else list(more)
    return sorted({token for token in (tokenizer.eos_token_id, *more) if token is not None})


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seed: int,
    label: str = "sampling",
) -> list[list[Reply]]:
    """Sample replies.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        samples: Replies a prompt (one if greedy).
        max_new_tokens: Longest reply, in tokens.
        temperature: Divides the logits; 0 takes the likeliest token. No top-k, no top-p.
        batch_size: Replies generated at once.
        seed: Seed of the sampling; the global random state is left as it was.
        label: Words before the progress bar.

    Returns:
        For each prompt its replies, in the order of the prompts.
    """
    model.eval()
    device = next(model.parameters()).device
    samples = samples if temperature > 0 else 1  # greedy replies are all the same
    config = _generation_config(model, tokenizer, samples, max_new_tokens, temperature)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    rows = max(1, batch_size // samples)
    replies: list[list[Reply]] = [[] for _ in prompts]
    with torch.random.fork_rng(), tqdm(total=len(prompts), desc=label, unit="prompt", leave=False, disable=None) as bar:
        torch.manual_seed(seed)
        for begin in range(0, len(order), rows):
            chosen = order[begin : begin + rows]
            ids, mask = _pad_left([prompts[index] for index in chosen], int(tokenizer.pad_token_id), device)
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            for place, row in enumerate(output[:, ids.shape[1] :].tolist()):
                replies[chosen[place // samples]].append(_reply(row, config.eos_token_id, tokenizer))
            bar.update(len(chosen))
    return replies


def _generation_config(
    model: PreTrainedModel, tokenizer: Any, samples: int, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Plain sampling; what the model's own config says about top-k, top-p or penalties does not apply."""
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature > 0
        else {"do_sample": False}
    )
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_return_sequences=samples,
        eos_token_id=stop_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **sampling,
    )


def _pad_left(rows: list[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _reply(row: list[int], stops: list[int], tokenizer: PreTrainedTokenizerBase) -> Reply:
    end = next((index for index, token in enumerate(row) if token in stops), None)
    ids = row if end is None else row[: end + 1]
    return Reply(tuple(ids), tokenizer.decode(ids, skip_special_tokens=True).strip(), end is not None)
