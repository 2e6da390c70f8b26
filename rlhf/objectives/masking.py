"""Sums, means and whitening over the true positions of a mask.

Masks are bool, True counts. What stands at a masked position never matters, NaN and infinity included. A mean's
denominator can be given: with the count over a whole optimizer step, the parts of a batch add up to the mean of the
whole, however it is cut into micro-batches or spread over processes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over all processes."""


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """The `Reduce` of a single process."""
    return tensor


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Σ values where the mask is true, in float32 (float64 stays).

    Args:
        values: Any shape.
        mask: Bool, the same shape.
    """
    values = values if values.dtype == torch.float64 else values.float()
    return values.masked_fill(~mask, 0.0).sum()


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor, denominator: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Σ values / denominator over the true positions; 0 where there are none.

    Args:
        values: Any shape.
        mask: Bool, the same shape.
        denominator: What to divide by; the number of true positions if not given.
    """
    count = mask.sum() if denominator is None else torch.as_tensor(denominator, device=mask.device)
    return masked_sum(values, mask) / count.clamp(min=1)


def masked_moments(
    values: torch.Tensor, mask: torch.Tensor, reduce: Reduce = alone, unbiased: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over the true positions of all processes.

    Two passes, so that a large mean does not swallow the variance.

    Args:
        values: Any shape.
        mask: Bool, the same shape.
        reduce: Sums over processes.
        unbiased: Divide by n - 1 (Bessel), not by n.

    Returns:
        Mean and variance, float64 scalars; both 0 without a true position, the variance 0 with one.
    """
    kept = values.double()[mask]
    total = reduce(torch.stack([torch.ones_like(kept).sum(), kept.sum()]))
    mean = total[1] / total[0].clamp(min=1)
    squares = reduce((kept - mean).square().sum())
    return mean, squares / (total[0] - int(unbiased)).clamp(min=1)


def whiten(
    values: torch.Tensor,
    mask: torch.Tensor,
    shift_mean: bool = True,
    unbiased: bool = True,
    reduce: Reduce = alone,
) -> torch.Tensor:
    """(x - μ) / σ over the true positions, with μ added back where the mean is to stay; 0 where the mask is false.

    σ = √(variance + 1e-8), so that equal values become 0 and not NaN.

    Args:
        values: Any shape.
        mask: Bool, the same shape.
        shift_mean: Whether the result has mean 0 (advantages) or keeps its mean (rewards).
        unbiased: Which variance: over n - 1 (PyTorch's default) or over n (TensorFlow's, as in the original code).
        reduce: Sums over processes, so that all of them whiten alike.

    Source: openai/lm-human-preferences; Huang et al., "The N Implementation Details of RLHF with PPO" (2023), detail 13
    for the two variances.
    """
    mean, variance = masked_moments(values, mask, reduce, unbiased)
    result = (values.double() - mean) * (variance + 1e-8).rsqrt()
    if not shift_mean:
        result = result + mean
    return result.masked_fill(~mask, 0.0).to(values.dtype if values.dtype == torch.float64 else torch.float32)
