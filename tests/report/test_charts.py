from __future__ import annotations

import pytest

from rlhf.report import charts


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 12, [0, 5, 10]), (0.5, 0.5, [0.5]), (0, 90, [0, 20, 40, 60, 80])],
)
def test_ticks_are_round_and_inside(low, high, ticks):
    assert charts.nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("span", [1e-6, 0.3, 7, 999, 4e7])
def test_there_are_a_few_ticks_for_any_range(span):
    ticks = charts.nice_ticks(-0.37 * span, 0.63 * span)
    assert 2 <= len(ticks) <= 6
    assert -0.37 * span <= ticks[0] < ticks[-1] <= 0.63 * span


def test_tick_text():
    assert [charts.tick_text(value) for value in (0, -0.5, 20, 12000, 0.0005)] == ["0", "−0.5", "20", "12k", "5e−4"]


def test_lines_stay_in_the_box_and_up_is_more():
    chart = charts.line_chart("Loss", "nats", [("training", [(0, 4.0), (10, 1.0)]), ("held out", [(5, 2.0)])])
    left, top, right, bottom = chart.box
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in chart.lines[0].points.split())
    assert left == x0 < x1 == right
    assert top < y0 < y1 < bottom
    assert chart.lines[1].dots
    assert all(top <= tick.position <= bottom for tick in chart.y_ticks)


def test_a_constant_curve_can_be_drawn():
    chart = charts.line_chart("Rate", "a step", [("training", [(1, 0.0), (2, 0.0)])])
    assert chart.y_ticks
    assert "nan" not in chart.lines[0].points


def test_smoothing_keeps_a_straight_line_and_removes_noise():
    line = [(float(x), 2.0 * x) for x in range(100)]
    smooth = charts.smoothed(line)
    assert all(y == pytest.approx(2 * x) for x, y in smooth)
    zigzag = charts.smoothed([(float(x), float(x % 2)) for x in range(100)])
    assert all(abs(y - 0.5) < 0.21 for _, y in zigzag)
    assert charts.smoothed(line[:10]) == []


def test_stage_charts_draw_what_was_logged():
    curves = {
        "loss": [[1, 2.0], [2, 1.0]],
        "eval_loss": [[2, 1.5]],
        "rewards/chosen": [[1, 0.0], [2, 1.0]],
        "epoch_time": [[1, 2]],
    }
    drawn = charts.stage_charts(curves)
    assert [(chart.title, [line.legend for line in chart.lines]) for chart in drawn] == [
        ("Loss", ["training", "held out"]), ("Implicit reward", ["chosen"]),
    ]  # fmt: skip
    assert charts.stage_charts({"loss": [[1, 2.0]]}) == []


def test_strips_share_an_axis_with_zero_in_view():
    estimates = [charts.Estimate("a", 2.0, [1.0, 3.0], "better"), charts.Estimate("b", 4.0, None, "same"),
                 charts.Estimate("c", None, None, "same")]  # fmt: skip
    panel = charts.strip_panel("Difference", "score", estimates, lambda mean, interval: f"{mean}", zero=0.0)
    assert panel is not None
    a, b = panel.strips
    assert 0 < panel.zero < a.low < a.middle < a.high < b.middle < 100
    assert b.low == b.middle == b.high
    assert a.middle - a.low == pytest.approx(a.high - a.middle, abs=0.02)
    assert charts.strip_panel("Empty", "score", estimates[2:], lambda mean, interval: "") is None
