"""Kullback-Leibler divergences: exact, estimated from samples, and the coefficient that holds them down."""

from __future__ import annotations

import torch


def token_kl(policy_BTV: torch.Tensor, reference_BTV: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) = Σ_v p(v) (log p(v) − log q(v)) at each position, computed in float32.

    Args:
        policy_BTV: Logits of p, [B, T, V].
        reference_BTV: Logits of q, [B, T, V].

    Returns:
        Nats/token, [B, T], at least 0 up to rounding; infinite where q rules out what p does not.
    """
    log_p = policy_BTV.float().log_softmax(-1)
    log_q = reference_BTV.float().log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p == -torch.inf, 0.0).sum(-1)  # 0 log 0 is 0


def k1(log_probs_BT: torch.Tensor, reference_BT: torch.Tensor) -> torch.Tensor:
    """Log p − log q of sampled tokens: unbiased for KL(p ‖ q), negative for single tokens.

    Args:
        log_probs_BT: Log-probabilities under p, from which the tokens were sampled; [B, T].
        reference_BT: The same tokens under q; [B, T].

    Returns:
        Nats/token, [B, T]. Source: Schulman, "Approximating KL Divergence" (2020).
    """
    return log_probs_BT.float() - reference_BT.float()


def k2(log_probs_BT: torch.Tensor, reference_BT: torch.Tensor) -> torch.Tensor:
    """(log p − log q)² / 2: biased, never negative, low variance. Arguments and source as `k1`."""
    return (log_probs_BT.float() - reference_BT.float()).square() / 2


def k3(log_probs_BT: torch.Tensor, reference_BT: torch.Tensor) -> torch.Tensor:
    """(r − 1) − log r with r = q/p: unbiased and never negative. Arguments and source as `k1`."""
    log_ratio = reference_BT.float() - log_probs_BT.float()
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""By name."""


def adapt_kl_coefficient(coefficient: float, kl: float, target: float, episodes: int, horizon: float) -> float:
    """β ← β (1 + clip(kl / target − 1, −0.2, 0.2) · min(1, episodes / horizon)).

    Args:
        coefficient: β now.
        kl: Mean KL of the latest completions, nats/sequence.
        target: Where it should be, nats/sequence.
        episodes: Replies since the last call.
        horizon: Episodes over which an error of one fifth or more scales β by about e^0.2.

    Source: Ziegler et al., "Fine-Tuning Language Models from Human Preferences" (2019), section 2.2; the minimum is
    ours, as a rollout larger than the horizon would make β negative.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * min(1.0, episodes / horizon))
