"""Advantage estimators behind one signature: how much better each token was than expected.

    estimator(rewards_BT, values_BT, mask_BT, gamma, lam, last_values_B=None, group_size=1, log_probs_BT=None)
        -> (advantages_BT, returns_BT)

    rewards_BT      reward of each token, [B, T]: −β·KL, and the score at the last token
    values_BT       the critic's value before each token, [B, T]; only `gae` reads it, the others take None
    mask_BT         bool, true at the tokens of a completion, which stand at the start of a row; false everywhere in a
                    row that takes no part, since its completion could not be scored
    gamma, lam      discount, and trace decay of `gae`
    last_values_B   value after the last token of a row that was cut off, 0 of one that finished, [B]; None: all did
    group_size      completions of one prompt; rows i·group_size … (i+1)·group_size − 1 belong to the same prompt
    log_probs_BT    log π of each action when it was taken, [B, T]; only `exact` reads it

Results are float32, [B, T], 0 where the mask is false. `returns_BT` is what a critic should have predicted.

A new estimator is one function in this file under `@estimator(…)`: the setting `advantage` then takes its name, and
training asks the estimator what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Advantages = tuple[torch.Tensor, torch.Tensor]
EstimatorFunction = Callable[..., Advantages]


@dataclass(frozen=True)
class Estimator:
    """An advantage estimator, and what it needs."""

    function: EstimatorFunction
    needs_values: bool
    """Whether it reads a critic's values: without, none is trained."""
    min_group: int
    """Fewest completions of a prompt that it can compare; above 1, a group of equal scores teaches it nothing."""
    every_action: bool = False
    """Whether it takes every completion that a prompt can have, with its probability, instead of samples."""


ESTIMATORS: dict[str, Estimator] = {}
"""By name."""


def estimator(
    *, needs_values: bool = False, min_group: int = 1, every_action: bool = False
) -> Callable[[EstimatorFunction], EstimatorFunction]:
    """Make a function an advantage estimator under its own name; the arguments are the fields of `Estimator`.

    The config layer finds the names by this decorator in the source, without importing torch.
    """

    def register(function: EstimatorFunction) -> EstimatorFunction:
        ESTIMATORS[function.__name__] = Estimator(function, needs_values, min_group, every_action)
        return function

    return register


@estimator(needs_values=True)
def gae(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor | None,
    mask_BT: torch.Tensor,
    gamma: float,
    lam: float,
    last_values_B: torch.Tensor | None = None,
    group_size: int = 1,
    log_probs_BT: torch.Tensor | None = None,
) -> Advantages:
    """Generalised advantage estimation: A_t = δ_t + γλ A_{t+1}, with δ_t = r_t + γ V_{t+1} − V_t; returns A + V.

    After the last token V is `last_values_B`: the critic's value for a completion that was cut off, since it would have
    gone on; 0 for a completion that ended by itself.

    Raises:
        ValueError: There are no values.

    Source: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation" (2016), eq.
    16; bootstrapping at a time limit: Pardo et al., "Time Limits in Reinforcement Learning" (2018).
    """
    if values_BT is None:
        raise ValueError("gae needs a critic's values")
    rewards = rewards_BT.float().masked_fill(~mask_BT, 0.0)
    values = values_BT.float().masked_fill(~mask_BT, 0.0)
    after = torch.zeros_like(values[:, 0]) if last_values_B is None else last_values_B.float()
    advantages = torch.zeros_like(rewards)
    running, following = torch.zeros_like(after), after
    for t in reversed(range(rewards.shape[1])):
        here = mask_BT[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(here, delta + gamma * lam * running, running)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = torch.where(here, running, 0.0)
    return advantages, advantages + values


@estimator(min_group=2)
def rloo(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor | None,
    mask_BT: torch.Tensor,
    gamma: float,
    lam: float,
    last_values_B: torch.Tensor | None = None,
    group_size: int = 1,
    log_probs_BT: torch.Tensor | None = None,
) -> Advantages:
    """Leave one out: A_i = R_i − mean of the other completions' R, with R the discounted reward of a whole completion.

    The same for each token of a completion; 0 where no other completion of the group takes part.

    Source: Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization" (2024), eq. 8.
    """
    totals_GS, counted_GS = _totals(rewards_BT, mask_BT, gamma, group_size)
    others = (counted_GS.sum(1, keepdim=True) - 1).clamp(min=1)
    baseline = (totals_GS.sum(1, keepdim=True) - totals_GS) / others
    alone = counted_GS.sum(1, keepdim=True) < 2
    return _spread((totals_GS - baseline).masked_fill(alone, 0.0), totals_GS, mask_BT)


@estimator(min_group=2)
def grpo(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor | None,
    mask_BT: torch.Tensor,
    gamma: float,
    lam: float,
    last_values_B: torch.Tensor | None = None,
    group_size: int = 1,
    log_probs_BT: torch.Tensor | None = None,
) -> Advantages:
    """Group-relative: A_i = (R_i − mean of the group) / (σ of the group + 1e-4), σ over n − 1.

    The same for each token of a completion; 0 for a group in which all are equal or fewer than two take part.

    Source: Shao et al., "DeepSeekMath" (2024), section 4.1.2.
    """
    totals_GS, counted_GS = _totals(rewards_BT, mask_BT, gamma, group_size)
    count = counted_GS.sum(1, keepdim=True)
    mean = totals_GS.sum(1, keepdim=True) / count.clamp(min=1)
    centred = (totals_GS - mean).masked_fill(~counted_GS, 0.0)
    deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return _spread(centred / (deviation + 1e-4), totals_GS, mask_BT)


@estimator()
def reinforce(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor | None,
    mask_BT: torch.Tensor,
    gamma: float,
    lam: float,
    last_values_B: torch.Tensor | None = None,
    group_size: int = 1,
    log_probs_BT: torch.Tensor | None = None,
) -> Advantages:
    """Reward to go: A_t = Σ_{s ≥ t} γ^{s−t} r_s, without a baseline: whitening over the batch is its baseline.

    Source: Williams (1992); with whitening it is REINFORCE++ (Hu, 2025).
    """
    advantages, _ = gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma, 1.0)
    return advantages, advantages


@estimator(every_action=True)
def exact(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor | None,
    mask_BT: torch.Tensor,
    gamma: float,
    lam: float,
    last_values_B: torch.Tensor | None = None,
    group_size: int = 1,
    log_probs_BT: torch.Tensor | None = None,
) -> Advantages:
    """No sampling: A_a = R_a − Σ_b π(b) R_b over every action b of an input, `group_size` of them.

    With rows weighted by π(a) the policy gradient is that of the expected reward, Σ_a π(a) A_a ∇log π(a), without
    variance. An action without a reward takes no part, and the others' probabilities are scaled to sum to 1.

    Raises:
        ValueError: There are no log-probabilities.

    Source: the policy gradient theorem before it is sampled, Sutton et al. (2000), eq. 2; "all-action" gradients:
    Petit et al., "All-Action Policy Gradient Methods" (2019).
    """
    if log_probs_BT is None:
        raise ValueError("exact needs the log-probability of every action")
    totals_GS, counted_GS = _totals(rewards_BT, mask_BT, gamma, group_size)
    chances_GS = log_probs_BT.float().masked_fill(~mask_BT, 0.0).sum(1).exp().view(-1, group_size) * counted_GS
    expected = (chances_GS * totals_GS).sum(1, keepdim=True) / chances_GS.sum(1, keepdim=True).clamp(min=1e-12)
    return _spread((totals_GS - expected).masked_fill(~counted_GS, 0.0), totals_GS, mask_BT)


def _totals(
    rewards_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Discounted reward of each completion, 0 where it takes no part; whether it takes part; [groups, group_size]."""
    discounts_T = gamma ** torch.arange(rewards_BT.shape[1], dtype=torch.float32, device=rewards_BT.device)
    totals_B = (rewards_BT.float().masked_fill(~mask_BT, 0.0) * discounts_T).sum(1)
    return totals_B.view(-1, group_size), mask_BT.any(1).view(-1, group_size)


def _spread(advantages_GS: torch.Tensor, totals_GS: torch.Tensor, mask_BT: torch.Tensor) -> Advantages:
    """Give each token the number of its completion."""
    return (
        torch.where(mask_BT, advantages_GS.reshape(-1, 1), 0.0),
        torch.where(mask_BT, totals_GS.reshape(-1, 1), 0.0),
    )
