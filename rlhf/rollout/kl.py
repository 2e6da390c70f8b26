"""How far a policy has moved from its reference, on its own replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf.objectives.kl import token_kl
from rlhf.rollout.sample import Reply


@torch.no_grad()
def sequence_kl(
    policy: Any,
    reference: Any,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[Reply]],
    temperature: float = 1.0,
) -> list[list[float]]:
    """KL(policy ‖ reference) of each sampled reply, in nats/sequence.

    The divergence of the two next-token distributions is summed over the reply's positions. Its mean over replies
    sampled from the policy is an unbiased estimate of the sequence-level KL, never negative, with less variance than
    the sampled log-ratio (Rao-Blackwellised over each token).

    Args:
        policy: Model the replies were sampled from.
        reference: Model it is compared with, same vocabulary.
        prompts: Token ids.
        replies: For each prompt its replies.
        temperature: The sampling temperature, which divides the logits of both.
    """
    results = []
    for prompt, row in zip(prompts, replies, strict=True):
        width = max(len(reply.ids) for reply in row)
        device = next(policy.parameters()).device
        ids_BT = torch.zeros(len(row), len(prompt) + width, dtype=torch.long, device=device)
        mask_BT = torch.zeros_like(ids_BT)
        for index, reply in enumerate(row):
            full = [*prompt, *reply.ids]
            ids_BT[index, : len(full)] = torch.tensor(full, device=device)
            mask_BT[index, : len(full)] = 1
        span = slice(len(prompt) - 1, -1)
        logits = [
            model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, span].float() / temperature
            for model in (policy, reference)
        ]
        kl_BT = token_kl(logits[0], logits[1][..., : logits[0].shape[-1]])
        results.append((kl_BT * mask_BT[:, len(prompt) :]).sum(-1).tolist())
    return results
