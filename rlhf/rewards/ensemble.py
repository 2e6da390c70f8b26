"""Several reward models as one that is cautious where they disagree."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.rewards import RewardFunction


class Ensemble:
    """Scores a completion by mean - k * std over the scores of several reward models.

    std is the population's, so that with two models k = 1 gives the lower of their scores. Scores are not normalised,
    so the models should share a scale, as models trained on the same pairs do. Source: Coste et al., "Reward Model
    Ensembles Help Mitigate Overoptimization", 2023, with the standard deviation instead of the variance, so that k has
    no unit.

    Args:
        models: The reward models.
        std_weight: k; 0 is the plain mean.
    """

    rowwise = True

    def __init__(self, models: Sequence[RewardFunction], std_weight: float = 1.0) -> None:
        self.models = tuple(models)
        self.std_weight = std_weight

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """A score per completion, in the models' own units; None if any model gives none."""
        scores = [model(prompts, completions, **columns) for model in self.models]
        return [self._combined(of_models) for of_models in zip(*scores, strict=True)]

    def _combined(self, scores: Sequence[float | None]) -> float | None:
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return None
        return statistics.fmean(known) - self.std_weight * statistics.pstdev(known)
