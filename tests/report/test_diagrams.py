from __future__ import annotations

import pytest

from rlhf.report import diagrams

LEFT, TOP, RIGHT, BOTTOM = diagrams.Diagram("", "", "", [], [], [], []).box


def _points(series: diagrams.Series) -> list[tuple[float, ...]]:
    return [tuple(map(float, point.split(","))) for point in series.points.split()]


def test_axes_put_corners_into_corners():
    axes = diagrams.Axes(0.5, 1.0, 0.0, 2.0)
    assert axes.place(0.5, 0.0) == (LEFT, BOTTOM)
    assert axes.place(1.0, 2.0) == (RIGHT, TOP)
    assert axes.place(0.75, 1.0) == pytest.approx(((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2), abs=0.06)


def test_the_diagonal_of_a_reliability_diagram_is_where_confidence_is_accuracy():
    curve = [{"confidence": 0.6, "accuracy": 0.6, "ci": [0.4, 0.8], "n": 20},
             {"confidence": 0.9, "accuracy": 0.7, "ci": [0.5, 0.85], "n": 20}]  # fmt: skip
    chart = diagrams.reliability(curve)
    (line,) = chart.guides
    assert (line.x1, line.x2, line.y2) == (LEFT, RIGHT, TOP)
    assert line.y1 == pytest.approx((TOP + BOTTOM) / 2, abs=0.06)  # accuracy 0.5, half way up

    def on_the_line(x: float) -> float:
        return line.y1 + (x - line.x1) / (line.x2 - line.x1) * (line.y2 - line.y1)

    right, too_sure = chart.series[0].marks
    assert right.y == pytest.approx(on_the_line(right.x), abs=0.1)
    assert too_sure.y > on_the_line(too_sure.x) + 10  # below: down is more
    assert right.high < right.y < right.low
    assert (chart.x_ticks[0].text, chart.y_ticks[-1].text) == ("50%", "100%")
    assert "sure, right in 70% [50%, 85%] of 20 pairs" in too_sure.text


def test_histogram_outlines_are_shares_over_common_edges():
    scores = {
        "edges": [0.0, 1.0, 2.0],
        "chosen": {"n": 4, "mean": 1.2, "std": 0.5, "counts": [1, 3]},
        "policy": {"n": 100, "mean": 0.4, "std": 0.1, "counts": [100, 0]},
    }
    chart = diagrams.histogram(scores, [("chosen", "chosen"), ("rejected", "rejected"), ("policy", "policy")])
    chosen, policy = chart.series
    assert policy.legend == "policy: 0.40 ± 0.10 (100)"
    middle = (LEFT + RIGHT) / 2
    xs = [x for x, _ in _points(chosen)]
    assert xs == [LEFT, LEFT, middle, middle, RIGHT, RIGHT]
    heights = [BOTTOM - y for _, y in _points(chosen)]
    assert heights[0] == heights[-1] == 0
    assert heights[3] == pytest.approx(3 * heights[1], abs=0.5)
    tallest = BOTTOM - _points(policy)[1][1]  # all of the set in the first bin
    assert tallest == pytest.approx(4 * heights[1], abs=0.5)
    assert tallest < BOTTOM - TOP
    assert diagrams.histogram({"edges": [0.0, 1.0]}, [("chosen", "chosen")]).series == []


def test_tracked_checkpoints_stand_at_the_root_of_their_kl():
    points = [
        {"step": step, "kl": kl, "length": 9.0, "checkpoint_judge": 0.1 * step,
         "checkpoint_judge_ci": [0.1 * step - 0.05, 0.1 * step + 0.05], "proxy": None, "proxy_ci": None}
        for step, kl in ((0, -0.01), (1, 4.0), (2, 16.0))
    ]  # fmt: skip
    (score,) = diagrams.tracked(points, 1)
    start, one, two = score.series[0].marks
    assert start.x == LEFT  # an estimate below zero is none
    assert one.x - LEFT == pytest.approx((two.x - LEFT) / 2, abs=0.1)  # 2 is half of 4
    assert start.y > one.y > two.y
    assert [mark.chosen for mark in (start, one, two)] == [False, True, False]
    (kept,) = score.guides
    assert (kept.x1, kept.x2, kept.text) == (one.x, one.x, "step 1 kept")
    assert [tick.text for tick in score.x_ticks] == ["0", "1", "2", "3", "4"]
    assert score.x_label == "√KL to the start, √nats a reply"
    both = diagrams.tracked([{**point, "proxy": 1.0, "proxy_ci": [0.9, 1.1]} for point in points], None)
    assert [chart.y_label for chart in both] == ["mean score [95%]", "standard deviations of the start [95%]"]
    assert both[1].guides == []
