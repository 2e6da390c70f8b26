"""How far a policy has moved from its reference, on its own completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf.objectives.kl import token_kl
from rlhf.policies.completion import Completion
from rlhf.prefix_sharing.head import completion_logits
from rlhf.prefix_sharing.layout import lay_out
from rlhf.prefix_sharing.support import folding_check, why_not, widest


@torch.no_grad()
def sequence_kl(
    policy: Any,
    reference: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Completion]],
    temperature: float = 1.0,
) -> list[list[float]]:
    """KL(policy ‖ reference) of each sampled completion, in nats/sequence.

    The divergence of the two next-token distributions is summed over the completion's positions. Its mean over
    completions sampled from the policy is an unbiased estimate of the sequence-level KL, never negative, with less
    variance than the sampled log-ratio (Rao-Blackwellised over each token). Where either model cannot share prompts, by
    its settings or by trial, each completion has its prompt to itself.

    Args:
        policy: Model the completions were sampled from.
        reference: Model it is compared with, same vocabulary.
        prompts: Token ids.
        completions: For each prompt its completions.
        temperature: The sampling temperature, which divides the logits of both.
    """
    results = []
    device = next(policy.parameters()).device
    both = (policy, reference)
    apart = any(why_not(model) or folding_check(model.base_model) for model in both)
    most = 0 if apart else min((limit for model in both if (limit := widest(model)) is not None), default=None)
    for prompt, row in zip(prompts, completions, strict=True):
        folded = lay_out([prompt], [[completion.ids for completion in row]], pad=0, widest=most).to(device)
        ours_KV, theirs_KV = (completion_logits(model, folded) / temperature for model in both)
        kl_K = token_kl(ours_KV, theirs_KV[:, : ours_KV.shape[1]])
        kl_BT = torch.zeros(folded.mask_BT.shape, device=device).masked_scatter(folded.mask_BT, kl_K)
        results.append(kl_BT.sum(-1).tolist())
    return results
