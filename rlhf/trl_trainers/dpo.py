"""TRL's DPOTrainer on pairs that are tokenised already, and what its log says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any

import trl

from rlhf.trl_trainers.reference import ReferenceTrainer

COUPLED = {"aot", "aot_unpaired", "sft"}
"""Losses of a batch as a whole: those of optimal transport sort its pairs, that of `sft` is a mean over its tokens."""


class DPOTrainer(ReferenceTrainer, trl.DPOTrainer):
    """TRL's trainer on pairs, whose shared prompts are computed once."""

    group_size = 2

    def separable(self) -> bool:
        """Whether every loss is a mean over pairs."""
        return not COUPLED & set(self.loss_types)


def falling_chosen(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Whether training made the chosen completions less likely while the margin grew, which the loss hides.

    Compared are the means of the first and the last third of the logged implicit rewards β (log π − log π_ref). A fall
    is one of more than two standard errors of the difference of the means.

    Args:
        history: Logged rows; those of training have `rewards/chosen` and `rewards/margins`, in β · nats/completion.

    Returns:
        A sentence with the numbers, or None; None too with fewer than six rows.

    Source: Pal et al., "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive" (2024), for the
    failure; Pang et al., "Iterative Reasoning Preference Optimization" (2024), for the remedy. The test is ours.
    """
    rows = [row for row in history if "rewards/chosen" in row and "rewards/margins" in row]
    if len(rows) < 6:
        return None
    third = len(rows) // 3
    first, last = ([row["rewards/chosen"] for row in part] for part in (rows[:third], rows[-third:]))
    before, after = fmean(first), fmean(last)
    error = ((variance(first) + variance(last)) / third) ** 0.5
    margins = [fmean(row["rewards/margins"] for row in part) for part in (rows[:third], rows[-third:])]
    if before - after <= 2 * error or margins[1] <= margins[0]:
        return None
    return (
        f"the chosen replies became less likely: their implicit reward fell from {before:.3f} to {after:.3f} while the "
        f"margin grew from {margins[0]:.3f} to {margins[1]:.3f}, since the loss sees only the difference of the two "
        "sides; if replies get worse, lower learning_rate, raise beta, or add the likelihood of the chosen reply with "
        "loss_type: [sigmoid, sft]"
    )
