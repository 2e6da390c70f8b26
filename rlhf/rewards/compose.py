"""Several rewards as one number: each is normalised, then they are summed with weights. NaN means "no score"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from rlhf.objectives.masking import Reduce
from rlhf.rewards import RewardFunction

STD_FLOOR = 1e-6
"""A reward that varies less than this is not divided by its deviation, which would only amplify noise."""


def score_matrix(scores: Sequence[Sequence[float | None]]) -> torch.Tensor:
    """What K reward functions returned, as a tensor.

    Args:
        scores: A list of B scores for each of K rewards; None means no score.

    Returns:
        float64 of shape (B, K), NaN for None.
    """
    rows = [[math.nan if score is None else score for score in reward] for reward in scores]
    return torch.tensor(rows, dtype=torch.float64).T


def normalisation(scores_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each reward on reference samples, with which `normalise` puts them on one scale.

    A reward model learns from differences only, so its offset and scale are arbitrary; both are measured on completions
    of the policy that training starts from (Huang et al., "The N Implementation Details of RLHF with PPO", 2023).

    Args:
        scores_BK: Scores of B reference completions by K rewards; NaN is ignored.

    Returns:
        Means and unbiased standard deviations, float64 of shape K. std is 1 where it would be below `STD_FLOOR` or
        there are fewer than two scores; mean is 0 where there is no score.
    """
    scores_BK = scores_BK.double()
    count_K = (~scores_BK.isnan()).sum(0)
    mean_K = scores_BK.nansum(0) / count_K.clamp(min=1)
    variance_K = (scores_BK - mean_K).square().nansum(0) / (count_K - 1).clamp(min=1)
    std_K = variance_K.sqrt()
    return mean_K, torch.where(std_K < STD_FLOOR, 1.0, std_K)


def normalise(scores_BK: torch.Tensor, mean_K: torch.Tensor, std_K: torch.Tensor) -> torch.Tensor:
    """Scores in standard deviations from the mean of the reference samples, (s - mean) / std.

    Args:
        scores_BK: Scores of B completions by K rewards; NaN stays NaN.
        mean_K: Means from `normalisation`.
        std_K: Standard deviations from `normalisation`.

    Returns:
        float64 of shape (B, K).
    """
    return (scores_BK.double() - mean_K) / std_K


def weighted_sum(scores_BK: torch.Tensor, weights_K: torch.Tensor, fallback_K: torch.Tensor) -> torch.Tensor:
    """One score per completion: the sum over k of w_k * s_k.

    A missing score is replaced by its reward's fallback, so that the completion neither gains nor loses by it against
    others of the batch; 0 would be a high score for one reward and a low one for another.

    Args:
        scores_BK: Scores of B completions by K rewards; NaN means no score.
        weights_K: Weights.
        fallback_K: What replaces NaN: each reward's mean over the batch, over all processes. A reward whose fallback is
            NaN too, because nothing in the batch could be scored, is left out.

    Returns:
        float64 of shape B; NaN for a completion that no reward could score.
    """
    missing_BK = scores_BK.isnan()
    filled_BK = torch.where(missing_BK, fallback_K.double(), scores_BK)
    total_B = (filled_BK * weights_K).nansum(1)
    return torch.where(missing_BK.all(1), math.nan, total_B)


def combined(
    scores_BK: torch.Tensor,
    weights_K: torch.Tensor,
    mean_K: torch.Tensor,
    std_K: torch.Tensor,
    reduce: Reduce = lambda tensor: tensor,
) -> torch.Tensor:
    """What is maximised: `normalise`, then `weighted_sum` with each reward's mean over the batch for missing scores.

    Args:
        scores_BK: Scores of B completions by K rewards; NaN means no score.
        weights_K: Weights.
        mean_K: Means from `normalisation`; empty: scores are taken as they are.
        std_K: Standard deviations from `normalisation`.
        reduce: Sums a tensor over all processes.

    Returns:
        float64 of shape B; NaN for a completion that no reward could score.
    """
    if len(mean_K):
        scores_BK = normalise(scores_BK, mean_K, std_K)
    known_BK = ~scores_BK.isnan()
    sums = reduce(torch.stack([known_BK.double().sum(0), scores_BK.nansum(0)]))
    fallback_K = torch.where(sums[0] > 0, sums[1] / sums[0].clamp(min=1), math.nan)
    return weighted_sum(scores_BK, weights_K, fallback_K)


@dataclass
class Rewards:
    """What is maximised: named parts and their weights.

    A part is a reward function, or None for the reward model that shares the policy's base.
    """

    parts: dict[str, RewardFunction | None]
    weights: dict[str, float]
    mean_K: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """By which each part is brought to mean 0 and std 1; empty: nothing is."""
    std_K: torch.Tensor = field(default_factory=lambda: torch.ones(0))

    @property
    def weights_K(self) -> torch.Tensor:
        """The weights, in the order of the parts."""
        return torch.tensor([self.weights[name] for name in self.parts], dtype=torch.float64)

    def fit_scale(self, scores_BK: torch.Tensor) -> None:
        """Take mean and standard deviation from completions of the starting policy."""
        self.mean_K, self.std_K = normalisation(scores_BK)

    def scale_of(self, name: str) -> tuple[float, float]:
        """How a part's score s enters the total: the a and b of a · s + b."""
        k = list(self.parts).index(name)
        if not len(self.mean_K):
            return self.weights[name], 0.0
        scale = self.weights[name] / self.std_K[k].item()
        return scale, -scale * self.mean_K[k].item()

    def total(self, scores_BK: torch.Tensor, reduce: Reduce) -> torch.Tensor:
        """One score a completion, [B]; NaN where no part has one."""
        return combined(scores_BK, self.weights_K, self.mean_K, self.std_K, reduce)
