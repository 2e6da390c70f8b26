"""Whether a model is as right as it is sure, and where. Pure functions.

A margin is the score of the chosen completion minus that of the rejected one; under the Bradley-Terry model the chosen
completion has the probability sigmoid(margin). Axis: N pairs, or answers. A value that is not finite is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rlhf.evaluation.stats import Floats, wilson_interval, wins

Integers = NDArray[np.intp]


class CalibrationBin(TypedDict):
    """The pairs, or answers, of which a model is about equally sure."""

    low: float
    """Confidence at which the bin begins, included."""
    high: float
    """Where it ends: excluded, but for the last."""
    confidence: float
    """Mean probability that the model gives to what it prefers."""
    accuracy: float
    """Share in which that is right; of pairs a tie counts half."""
    ci: list[float]
    """95% Wilson interval of the accuracy."""
    n: int
    """Pairs, or answers, in the bin."""


class LengthBucket(TypedDict):
    """The pairs whose chosen completion is longer by about as much."""

    low: float
    """Smallest difference chosen - rejected of the bucket, included."""
    high: float
    """Where it ends: excluded, but for the last."""
    accuracy: float
    """Share of the pairs with a margin above zero; a tie counts half."""
    ci: list[float]
    """Its 95% Wilson interval."""
    n: int
    """Pairs in the bucket."""


def calibration_curve(margins_N: Floats, bins: int = 10) -> list[CalibrationBin]:
    """Confidence of a reward model against its accuracy, in bins of equal width over [0.5, 1].

    All pairs have the label 1 in the direction chosen - rejected, so what is calibrated is the confidence in the
    preferred completion, max(p, 1 - p) with p = sigmoid(margin), against how often it is the chosen one. Equal width
    as in Guo et al. 2017, "On Calibration of Modern Neural Networks", so that bins mean the same for every model; a
    thin bin shows by its interval.

    Args:
        margins_N: Score of chosen minus score of rejected.
        bins: Number of bins.

    Returns:
        The bins that hold a pair, least sure first.

    Raises:
        ValueError: `bins` is below 1.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins")
    margins_N = np.asarray(margins_N, dtype=np.float64)
    margins_N = margins_N[np.isfinite(margins_N)]
    confidence_N, correct_N = expit(np.abs(margins_N)), wins(margins_N)
    edges = 0.5 + 0.5 * np.arange(bins + 1) / bins
    place_N = np.clip(np.searchsorted(edges, confidence_N, side="right") - 1, 0, bins - 1)
    return _curve(confidence_N, correct_N, place_N, edges)


def equal_mass_curve(confidence_N: Floats, correct_N: Floats, bins: int = 10) -> list[CalibrationBin]:
    """Confidence of a classifier against its accuracy, in bins of about equal numbers of answers.

    A trained classifier is nearly always nearly sure, so that of bins of equal width most are empty and one holds
    nearly all: equal numbers, as in Nguyen & O'Connor 2015, "Posterior Calibration and Exploratory Analysis for Natural
    Language Processing Models". Bins begin at quantiles; equal confidences stay together, so that there may be fewer.

    Args:
        confidence_N: Probability that the classifier gave to its own answer.
        correct_N: 1 where that answer is right, else 0.
        bins: Most bins.

    Returns:
        The bins, least sure first.

    Raises:
        ValueError: `bins` is below 1.
    """
    confidence_N, correct_N = (np.asarray(values, dtype=np.float64) for values in (confidence_N, correct_N))
    known_N = np.isfinite(confidence_N) & np.isfinite(correct_N)
    confidence_N, correct_N = confidence_N[known_N], correct_N[known_N]
    place_N, edges = _equal_mass(confidence_N, bins)
    return _curve(confidence_N, correct_N, place_N, edges)


def _curve(confidence_N: Floats, correct_N: Floats, place_N: Integers, edges: Floats) -> list[CalibrationBin]:
    """The bins that hold something; bin b lies between edges b and b + 1."""
    curve = []
    for place in np.unique(place_N):
        inside_N = place_N == place
        curve.append(
            CalibrationBin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                confidence=float(confidence_N[inside_N].mean()),
                accuracy=float(correct_N[inside_N].mean()),
                ci=list(wilson_interval(float(correct_N[inside_N].sum()), int(inside_N.sum()))),
                n=int(inside_N.sum()),
            )
        )
    return curve


def _equal_mass(values_N: Floats, bins: int) -> tuple[Integers, Floats]:
    """The bin of each value, of about equal numbers, and where the bins begin and the last ends.

    Begins are values that occur, so no bin is empty; equal values stay together, so there may be fewer than asked.

    Raises:
        ValueError: `bins` is below 1.
    """
    if bins < 1:
        raise ValueError(f"{bins} buckets")
    if not len(values_N):
        return np.zeros(0, np.intp), np.zeros(0)
    starts = np.unique(np.quantile(values_N, np.arange(bins) / bins, method="higher"))
    return np.searchsorted(starts, values_N, side="right") - 1, np.append(starts, values_N.max())


def expected_calibration_error(curve: Sequence[CalibrationBin]) -> float | None:
    """Mean distance of accuracy from confidence: ECE = sum over bins of n_b / N |accuracy_b - confidence_b|.

    Guo et al. 2017, equation 3, on the bins of `calibration_curve` or `equal_mass_curve`. Chance alone makes it
    positive: a perfectly calibrated model has about sqrt(bins / N) / 3 on N pairs.

    Args:
        curve: The bins.

    Returns:
        Between 0 and 1; None where there is no bin.
    """
    if not curve:
        return None
    return sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in curve) / sum(b["n"] for b in curve)


def accuracy_by_length(margins_N: Floats, length_difference_N: Floats, buckets: int = 4) -> list[LengthBucket]:
    """Accuracy of a reward model among pairs with like differences of length, in buckets of about equal size.

    A model that only likes length is right where the chosen completion is longer, wrong where it is shorter. Buckets
    begin at quantiles of the differences; equal differences stay together, so there may be fewer buckets than asked.

    Args:
        margins_N: Score of chosen minus score of rejected.
        length_difference_N: Length of chosen minus length of rejected, of the same pairs, any unit.
        buckets: Most buckets.

    Returns:
        The buckets, from chosen much shorter to chosen much longer.

    Raises:
        ValueError: `buckets` is below 1.
    """
    margins_N, length_N = (np.asarray(values, dtype=np.float64) for values in (margins_N, length_difference_N))
    known_N = np.isfinite(margins_N) & np.isfinite(length_N)
    correct_N, length_N = wins(margins_N[known_N]), length_N[known_N]
    place_N, edges = _equal_mass(length_N, buckets)
    filled = []
    for place, (low, high) in enumerate(pairwise(edges)):
        inside_N = place_N == place
        right, n = float(correct_N[inside_N].sum()), int(inside_N.sum())
        filled.append(
            LengthBucket(low=float(low), high=float(high), accuracy=right / n, ci=list(wilson_interval(right, n)), n=n)
        )
    return filled
