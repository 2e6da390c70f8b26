"""The losses of PPO and of a reward model. Pure, float32 inside (float64 stays).

Those of PPO are masked means whose denominator can be given.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from rlhf.objectives.masking import masked_mean

Denominator = torch.Tensor | float | None


class PolicyLoss(NamedTuple):
    """The clipped policy loss and what it says about the step; scalars, means over the denominator."""

    loss: torch.Tensor
    ratio: torch.Tensor
    """Mean of π/π_old."""
    clipfrac: torch.Tensor
    """Share of tokens whose clipped term decides."""
    approxkl: torch.Tensor
    """Mean of (log π − log π_old)²/2, nats/token."""


class ValueLoss(NamedTuple):
    """The clipped value loss, and the share of tokens whose clipped term decides."""

    loss: torch.Tensor
    clipfrac: torch.Tensor


def policy_loss(
    log_probs_BT: torch.Tensor,
    old_log_probs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    cliprange: float,
    denominator: Denominator = None,
    weights_BT: torch.Tensor | None = None,
) -> PolicyLoss:
    """−mean w · min(ρ A, clip(ρ, 1 − ε, 1 + ε) A), with ρ = π/π_old.

    Args:
        log_probs_BT: log π of the sampled tokens, [B, T]; gradients flow here.
        old_log_probs_BT: log π_old, [B, T].
        advantages_BT: A, [B, T].
        mask_BT: Bool, [B, T].
        cliprange: ε.
        denominator: What the sums are divided by; the number of tokens if not given.
        weights_BT: Weights w, [B, T], with which means over the rows are those over what π_old would have sampled:
            truncated importance weights where sampling and training compute different log-probabilities (another
            engine, or weights below float32), or n · π_old where the rows are all n actions of each input.

    Source: Schulman et al., "Proximal Policy Optimization Algorithms" (2017), eq. 7; the weights: Yao et al., "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).
    """
    log_ratio = _masked_difference(log_probs_BT, old_log_probs_BT, mask_BT)
    ratio = log_ratio.exp()
    advantages = advantages_BT.to(ratio.dtype)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    losses = torch.maximum(plain, clipped)
    if weights_BT is not None:
        losses = losses * weights_BT.to(ratio.dtype)
    with torch.no_grad():
        weights = torch.ones_like(ratio) if weights_BT is None else weights_BT.to(ratio.dtype)
        statistics = (weights * ratio, weights * (clipped > plain), weights * log_ratio.square() / 2)
        means = [masked_mean(values, mask_BT, denominator) for values in statistics]
    return PolicyLoss(masked_mean(losses, mask_BT, denominator), *means)


def action_weights(
    log_probs_BT: torch.Tensor, actions: int | None, sampled_log_probs_BT: torch.Tensor | None, cap: float
) -> torch.Tensor | None:
    """How much more often a policy takes the actions than they stand in a rollout; None for as often.

    n · π where the rows are all n actions of each input, else the truncated π_trainer/π_sampler.

    Args:
        log_probs_BT: log π of the actions, [B, T], nats.
        actions: n, where the rows are all actions of each input; None where they were sampled.
        sampled_log_probs_BT: The sampler's own log-probabilities, [B, T], where they differ; else None.
        cap: Largest ratio.

    Source: Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).
    """
    if actions is not None:
        return log_probs_BT.exp() * actions
    if sampled_log_probs_BT is None:
        return None
    return (log_probs_BT - sampled_log_probs_BT).exp().clamp(max=cap)


def value_loss(
    values_BT: torch.Tensor,
    old_values_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    cliprange: float,
    denominator: Denominator = None,
) -> ValueLoss:
    """Mean ½ max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²).

    Args:
        values_BT: V, the critic's values now, [B, T]; gradients flow here.
        old_values_BT: V_old, its values when the completions were sampled, [B, T].
        returns_BT: R, [B, T].
        mask_BT: Bool, [B, T].
        cliprange: ε, in units of the return.
        denominator: As in `policy_loss`.

    Source: openai/baselines ppo2; Huang et al., "The N Implementation Details of RLHF with PPO" (2023).
    """
    change = _masked_difference(values_BT, old_values_BT, mask_BT)
    old = old_values_BT.to(change.dtype).masked_fill(~mask_BT, 0.0)
    returns = returns_BT.to(change.dtype).masked_fill(~mask_BT, 0.0)
    plain = (old + change - returns).square()
    clipped = (old + change.clamp(-cliprange, cliprange) - returns).square()
    with torch.no_grad():
        clipfrac = masked_mean((clipped > plain).float(), mask_BT, denominator)
    return ValueLoss(masked_mean(torch.maximum(plain, clipped) / 2, mask_BT, denominator), clipfrac)


def entropy_loss(entropies_BT: torch.Tensor, mask_BT: torch.Tensor, denominator: Denominator = None) -> torch.Tensor:
    """−mean H: added to the loss with a small weight it keeps the policy from narrowing too early.

    Args:
        entropies_BT: H, entropy of the next-token distribution, nats/token, [B, T].
        mask_BT: Bool, [B, T].
        denominator: As in `policy_loss`.

    Source: Williams & Peng (1991); Schulman et al. (2017), eq. 9.
    """
    return -masked_mean(entropies_BT, mask_BT, denominator)


def bradley_terry_loss(chosen_scores_B: torch.Tensor, rejected_scores_B: torch.Tensor) -> torch.Tensor:
    """−mean log σ(r_chosen − r_rejected): the negative log-likelihood of the comparisons, nats/pair.

    The reward stage's loss, which TRL's RewardTrainer computes by itself; this is for scores that are not a language
    model's. Only the difference counts, so a reward that is learned with it has no zero of its own.

    Args:
        chosen_scores_B: r of the preferred sides, [B]; gradients flow to both.
        rejected_scores_B: r of the other sides, [B].

    Source: Bradley & Terry, "Rank Analysis of Incomplete Block Designs" (1952); Christiano et al., "Deep Reinforcement
    Learning from Human Preferences" (2017), eq. 1.
    """
    kind = torch.float64 if chosen_scores_B.dtype == torch.float64 else torch.float32
    return -functional.logsigmoid(chosen_scores_B.to(kind) - rejected_scores_B.to(kind)).mean()


def _masked_difference(new: torch.Tensor, old: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """New − old, 0 at masked positions before anything is computed from it: an inf there would give NaN gradients."""
    kind = torch.float64 if new.dtype == torch.float64 else torch.float32
    return new.to(kind).masked_fill(~mask, 0.0) - old.to(kind).masked_fill(~mask, 0.0)
