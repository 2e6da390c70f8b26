"""How good a reward model is on pairs it did not see, beside a judge that only measures length."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import Trainer

from rlhf.evaluation.stats import wilson_interval
from rlhf.rewards.model import score_groups


def held_out_accuracy(trainer: Trainer, train: Dataset, held_out: Dataset) -> dict[str, Any]:
    """Accuracy of a reward model on held-out pairs, with its interval, beside the length-only baseline.

    Args:
        trainer: Its model is scored.
        train: Training pairs, `chosen_ids` and `rejected_ids`: they decide whether the baseline prefers long or short.
        held_out: Pairs the model did not see.

    Returns:
        `accuracy`, `accuracy_ci` (95% Wilson), `length_baseline`, `length_baseline_ci`, `n`, and the mean and standard
        deviation of the scores. Ties count one half.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    pairs = list(zip(held_out["chosen_ids"], held_out["rejected_ids"], strict=True))
    scores = np.array(score_groups(model, pairs, trainer.args.per_device_eval_batch_size))
    chosen, rejected = scores.T
    right = float(wins(chosen - rejected).sum())
    ruler = float(length_baseline(_length_difference(train), _length_difference(held_out)).sum())
    count = len(held_out)
    return {
        "accuracy": right / count,
        "accuracy_ci": list(wilson_interval(right, count)),
        "length_baseline": ruler / count,
        "length_baseline_ci": list(wilson_interval(ruler, count)),
        "n": count,
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
    }


def length_baseline(train_N: NDArray[np.float64], held_out_M: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wins of the judge that prefers the longer reply, or the shorter, whichever is right more often in training.

    Args:
        train_N: Length of chosen minus length of rejected, training pairs.
        held_out_M: The same for the held-out pairs.

    Returns:
        1 where it is right, 0 where wrong, 0.5 where both are as long.
    """
    sign = 1.0 if wins(train_N).mean() >= 0.5 else -1.0
    return wins(sign * held_out_M)


def wins(difference_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where a difference is above 0, 0 below, one half at 0."""
    return np.where(difference_N > 0, 1.0, np.where(difference_N < 0, 0.0, 0.5))


def _length_difference(pairs: Dataset) -> NDArray[np.float64]:
    sides = zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True)
    return np.array([len(chosen) - len(rejected) for chosen, rejected in sides], dtype=float)
