"""Numbers as text."""

import pytest

from rlhf.evaluation.formatting import count, duration, estimate, number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.12"), (-0.5, "−0.50"), (12.34, "12.3"), (1234.5, "1,234"), (3.0, "3"), (None, "–"), (0.0012, "1.2e−3"),
     (float("nan"), "–"), (0.0, "0")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_number_never_says_minus_zero():
    assert number(-0.001, 2) == "0.00"
    assert number(-0.001, 2, signed=True) == "0.00"


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.12, [0.09, 0.15], "+0.12 [0.09, 0.15]"),
        (1.5, None, "+1.50"),
        (0.02, [0.001, 0.04], "+0.020 [0.001, 0.040]"),  # better, so the low end must not read as zero
        (-0.004, [-0.005, -0.003], "−0.004 [−0.005, −0.003]"),
        (0.0, [0.0, 0.0], "0.00 [0.00, 0.00]"),
    ],
)
def test_estimate(value, interval, text):
    assert estimate(value, interval, signed=True) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (41, "41 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (None, "–"),
        (59.7, "1 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_shares_and_counts():
    assert percent(-0.2, [-0.3, 0.1]) == "−20% [−30%, 10%]"
    assert [count(1, "reply"), count(1200, "reply")] == ["1 reply", "1,200 replies"]
