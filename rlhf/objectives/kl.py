"""Kullback-Leibler divergences between next-token distributions."""

from __future__ import annotations

import torch


def token_kl(policy_BTV: torch.Tensor, reference_BTV: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) = Σ_v p(v) (log p(v) − log q(v)) at each position, computed in float32.

    Args:
        policy_BTV: Logits of p, [B, T, V].
        reference_BTV: Logits of q, [B, T, V].

    Returns:
        Nats/token, [B, T], at least 0 up to rounding.
    """
    log_p = policy_BTV.float().log_softmax(-1)
    log_q = reference_BTV.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
