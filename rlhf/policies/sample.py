"""Prompts to replies, as evaluation and chat read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.records import Text
from rlhf.policies.sampler import TransformersSampler, row_seed
from rlhf.policies.trial import batching_of


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
        batch_size: Replies sampled at once.
        seed: Seed of the sampling; the global random state is not touched.
        label: Words before the progress bar.

    Returns:
        For each prompt its replies, in the order of the prompts.

    Raises:
        UserError: The model cannot be sampled.
    """
    model.eval()
    samples = samples if temperature > 0 else 1  # greedy replies are all the same
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
    seeds = [[row_seed(seed, prompt, number) for number in range(samples)] for prompt in range(len(prompts))]
    return [
        [Reply(tuple(one.ids), text_of(one.ids, tokenizer), one.finished) for one in row]
        for row in sampler(prompts, seeds)
    ]


def text_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """A reply's tokens as text."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def as_completion(prompt: Text, reply: str) -> Text:
    """A reply in the form of its prompt: text as it is, since it goes on where the prompt ends, or a message."""
    return reply if isinstance(prompt, str) else [{"role": "assistant", "content": reply.strip()}]
