from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from rlhf.evaluation.calibration import (
    accuracy_by_length,
    calibration_curve,
    equal_mass_curve,
    expected_calibration_error,
)
from rlhf.evaluation.stats import wilson_interval


def _margin(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_curve_by_hand():
    # Sure at 62% and wrong, at 62% and right, at 88% and right, at 88% and right
    margins = np.array([-_margin(0.62), _margin(0.62), _margin(0.88), _margin(0.88)])
    first, second = calibration_curve(margins, bins=5)
    assert (first["low"], first["high"], first["n"]) == (pytest.approx(0.6), pytest.approx(0.7), 2)
    assert (first["confidence"], first["accuracy"]) == (pytest.approx(0.62), 0.5)
    assert first["ci"] == pytest.approx(list(wilson_interval(1, 2)))
    assert (second["low"], second["high"], second["n"]) == (pytest.approx(0.8), pytest.approx(0.9), 2)
    assert (second["confidence"], second["accuracy"]) == (pytest.approx(0.88), 1.0)
    # 2/4 * |0.5 - 0.62| + 2/4 * |1 - 0.88|
    assert expected_calibration_error(calibration_curve(margins, bins=5)) == pytest.approx(0.12)


def test_errors_of_bins_do_not_cancel():
    """Too sure in one bin, too unsure in the other: right on the whole, and still not calibrated."""
    margins = np.array([_margin(0.6)] * 10 + [_margin(0.8)] * 6 + [-_margin(0.8)] * 4)
    assert expected_calibration_error(calibration_curve(margins, bins=2)) == pytest.approx((0.4 + 0.2) / 2)
    assert expected_calibration_error(calibration_curve(margins, bins=1)) == pytest.approx(0.1)


def test_both_ends_are_in_a_bin():
    tie, certain = calibration_curve(np.array([0.0, 1000.0]), bins=10)
    assert (tie["low"], tie["confidence"], tie["accuracy"]) == (0.5, 0.5, 0.5)
    assert (certain["high"], certain["confidence"], certain["accuracy"]) == (1.0, 1.0, 1.0)
    (surest,) = calibration_curve(np.array([-1000.0, math.nan, math.inf]), bins=10)
    assert (surest["n"], surest["accuracy"]) == (1, 0.0)


def test_nothing_to_calibrate():
    assert calibration_curve(np.array([])) == []
    assert expected_calibration_error(calibration_curve(np.array([math.nan]))) is None
    with pytest.raises(ValueError, match="bins"):
        calibration_curve(np.array([1.0]), bins=0)


def test_a_calibrated_model_has_a_small_error_and_scale_shows():
    draw = np.random.default_rng(0)
    sure_N = draw.normal(0, 1.5, 20_000)
    margins_N = np.where(draw.random(20_000) < 1 / (1 + np.exp(-sure_N)), sure_N, -sure_N)
    assert expected_calibration_error(calibration_curve(margins_N)) < 0.015
    assert expected_calibration_error(calibration_curve(3 * margins_N)) > 0.1  # too sure, at the same accuracy
    assert expected_calibration_error(calibration_curve(margins_N / 5)) > 0.1  # not sure enough


def test_chance_alone_makes_an_error_of_the_size_the_docstring_says():
    draw = np.random.default_rng(1)
    errors = []
    for _ in range(200):
        sure_N = draw.normal(0, 1.5, 400)
        margins_N = np.where(draw.random(400) < 1 / (1 + np.exp(-sure_N)), sure_N, -sure_N)
        errors.append(expected_calibration_error(calibration_curve(margins_N)))
    assert np.mean(errors) == pytest.approx(math.sqrt(10 / 400) / 3, rel=0.2)


def test_accuracy_by_length_by_hand():
    lengths = np.array([-5.0, -1.0, 0.0, 3.0, 4.0, 9.0])
    margins = np.array([-1.0, 2.0, 0.0, 1.0, 1.0, 1.0])
    low, middle, high = accuracy_by_length(margins, lengths, buckets=3)
    assert [(b["low"], b["high"], b["accuracy"], b["n"]) for b in (low, middle, high)] == [
        (-5.0, 0.0, 0.5, 2), (0.0, 4.0, 0.75, 2), (4.0, 9.0, 1.0, 2),
    ]  # fmt: skip
    assert middle["ci"] == pytest.approx(list(wilson_interval(1.5, 2)))


def test_every_pair_is_in_one_bucket():
    draw = np.random.default_rng(2)
    lengths = draw.integers(-20, 40, 403).astype(float)
    filled = accuracy_by_length(draw.normal(size=403), lengths, buckets=5)
    assert sum(bucket["n"] for bucket in filled) == 403
    assert all(60 <= bucket["n"] <= 100 for bucket in filled)
    assert (filled[0]["low"], filled[-1]["high"]) == (lengths.min(), lengths.max())
    assert all(left["high"] == right["low"] for left, right in pairwise(filled))


def test_equal_lengths_stay_together():
    (bucket,) = accuracy_by_length(np.array([1.0, -1.0, 0.0]), np.array([7.0, 7.0, 7.0]))
    assert (bucket["low"], bucket["high"], bucket["n"], bucket["accuracy"]) == (7.0, 7.0, 3, 0.5)
    two = accuracy_by_length(np.ones(10), np.array([0.0] * 9 + [10.0]), buckets=4)
    assert sum(bucket["n"] for bucket in two) == 10
    assert all(bucket["n"] for bucket in two)
    assert accuracy_by_length(np.array([math.nan]), np.array([1.0])) == []
    with pytest.raises(ValueError, match="buckets"):
        accuracy_by_length(np.array([1.0]), np.array([1.0]), buckets=0)


def test_a_model_that_only_likes_length_is_found_out():
    lengths = np.random.default_rng(3).normal(0, 10, 400)
    filled = accuracy_by_length(np.sign(lengths), lengths)
    assert [bucket["accuracy"] for bucket in filled[:1] + filled[-1:]] == [0.0, 1.0]


def test_bins_of_equal_numbers_by_hand():
    confidence = np.array([0.9, 0.3, 0.5, 0.95, 0.99, 0.9, math.nan])
    correct = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    low, middle, high = equal_mass_curve(confidence, correct, bins=3)
    assert [(b["low"], b["high"], b["n"]) for b in (low, middle, high)] == [
        (0.3, 0.9, 2),
        (0.9, 0.95, 2),
        (0.95, 0.99, 2),
    ]
    assert [b["accuracy"] for b in (low, middle, high)] == [0.5, 0.5, 0.5]
    assert [b["confidence"] for b in (low, middle, high)] == pytest.approx([0.4, 0.9, 0.97])
    # (0.1 + 0.4 + 0.47) / 3
    assert expected_calibration_error([low, middle, high]) == pytest.approx(0.97 / 3)


def test_equal_confidences_share_a_bin_whatever_their_order():
    """Cut by rank, the error of answers that are all equally sure would depend on their order."""
    correct = np.array([1.0, 1.0, 0.0, 0.0])
    (only,) = equal_mass_curve(np.full(4, 0.8), correct, bins=2)
    assert (only["n"], only["accuracy"]) == (4, 0.5)
    assert equal_mass_curve(np.array([]), np.array([])) == []
    with pytest.raises(ValueError, match="buckets"):
        equal_mass_curve(np.full(4, 0.8), correct, bins=0)
