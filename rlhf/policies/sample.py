"""Samples completions from a finished policy, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.policies.completion import Completion, decoded, row_seed
from rlhf.policies.sampler import TransformersSampler
from rlhf.policies.sampling_check import batching_of


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's EOS and those of the model's generation config."""
    more = getattr(model.generation_config, "eos_token_id", None)
    more = [] if more is None else [more] if isinstance(more, int) else list(more)
    return sorted({token for token in (tokenizer.eos_token_id, *more) if token is not None})


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
    first: int = 0,
) -> list[list[Completion]]:
    """Sample completions, with their text.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        samples: Completions of each prompt (1 if greedy).
        max_new_tokens: Longest completion, in tokens.
        temperature: Divides the logits; 0 takes the likeliest token. No top-k, no top-p.
        batch_size: Completions sampled at once.
        seed: Seed of the sampling; the global random state is not touched.
        label: Words before the progress bar.
        first: Place of the first prompt among all, where these are some of them: a seed goes by the place.

    Returns:
        For each prompt its completions, in the order of the prompts.

    Raises:
        UserError: The model cannot be sampled.
    """
    model.eval()
    samples = samples if temperature > 0 else 1  # greedy completions of a prompt are all the same
    sampler = TransformersSampler(
        model,
        stop_ids(model, tokenizer),
        int(tokenizer.pad_token_id),
        max_new_tokens,
        temperature,
        batch_size,
        batching_of(model),
        label,
    )
    places = range(first, first + len(prompts))
    seeds = [[row_seed(seed, place, number) for number in range(samples)] for place in places]
    return decoded(sampler(prompts, seeds), tokenizer)
