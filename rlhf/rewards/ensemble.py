"""Several reward models as one that is careful where they disagree."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.rewards import RewardFunction


class Ensemble:
    """Scores a reply by mean - k * std over the scores that several reward models give it.

    std is that of the population, the models being all there are: of two models, k = 1 takes the lower score. The
    scores are used as they come, so the models should share a scale, as those trained on the same pairs do. Source:
    Coste et al., "Reward Model Ensembles Help Mitigate Overoptimization", 2023, with the standard deviation in the
    place of the variance, so that k has no unit.

    Args:
        models: The reward models.
        std_weight: k; 0 is the plain mean.
    """

    def __init__(self, models: Sequence[RewardFunction], std_weight: float = 1.0) -> None:
        self.models = tuple(models)
        self.std_weight = std_weight

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """One score a reply, in the models' own units; None where any of them gives none."""
        scores = [model(prompts, completions, **columns) for model in self.models]
        return [self._together(of_reply) for of_reply in zip(*scores, strict=True)]

    def _together(self, scores: Sequence[float | None]) -> float | None:
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return None
        return statistics.fmean(known) - self.std_weight * statistics.pstdev(known)
