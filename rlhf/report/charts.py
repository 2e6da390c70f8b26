"""Geometry of the report's charts: numbers in, positions out. The templates draw them as inline SVG.

Drawn by hand and not by a plotting library, so that one drawing takes its colours from the page (light, dark, print),
its text stays text, and a strip of intervals stretches with the page while its labels do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Points = Sequence[Sequence[float]]
"""[x, y] each."""

WIDTH, HEIGHT = 240, 172
"""Size of a line chart in its own units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 6, 22, 32
_STRIP_MARGIN = 3.0  # percent of a strip's width kept free on either side, so that whiskers are not cut

_TWO_SIDES = "training", "held out"
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Score of its replies", "normalised score", (("objective/scores", "training"),)),
    ("KL to reference", "nats a reply", (("objective/kl", "training"),)),
    ("Reply length", "tokens", (("response/length", "training"),)),
    ("Replies that end", "share of replies", (("response/eos_share", "training"),)),
    ("Loss", "nats", tuple(zip(("loss", "eval_loss"), _TWO_SIDES, strict=True))),
    ("Accuracy", "share that is right", tuple(zip(("accuracy", "eval_accuracy"), _TWO_SIDES, strict=True))),
    (
        "Pairs ranked right",
        "share of pairs",
        tuple(zip(("rewards/accuracies", "eval_rewards/accuracies"), _TWO_SIDES, strict=True)),
    ),
    (
        "Token accuracy",
        "share of tokens",
        tuple(zip(("mean_token_accuracy", "eval_mean_token_accuracy"), _TWO_SIDES, strict=True)),
    ),
    ("Implicit reward", "β × nats a reply", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"))),
    (
        "Reward margin",
        "β × nats a reply",
        tuple(zip(("rewards/margins", "eval_rewards/margins"), _TWO_SIDES, strict=True)),
    ),
    ("Reward margin", "score", tuple(zip(("margin", "eval_margin"), _TWO_SIDES, strict=True))),
    ("Log-probability", "nats a reply", (("logps/chosen", "chosen"), ("logps/rejected", "rejected"))),
    ("Entropy", "nats a token", (("entropy", "training"),)),
    ("Entropy", "nats a token", (("policy/entropy", "training"),)),
    ("Approximate KL of a step", "nats a token", (("policy/approxkl", "training"),)),
    ("Critic's explained variance", "share of the returns' variance", (("value/explained_variance", "training"),)),
    ("Gradient norm", "L2 norm", (("grad_norm", "training"),)),
    ("Learning rate", "a step", (("learning_rate", "training"),)),
)
"""Training curves: title, unit, and the logged metrics in one panel with their legend; drawn where there is data."""


class Tick(NamedTuple):
    """A mark on an axis."""

    position: float
    text: str


class Line(NamedTuple):
    """One curve: legend, SVG points, the smoothed points where there are many, dots where there are few."""

    legend: str
    points: str
    smooth: str
    dots: list[tuple[float, float]]


class LineChart(NamedTuple):
    """A panel of training curves in a box of WIDTH x HEIGHT units."""

    title: str
    unit: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    box: tuple[int, int, int, int]


class Estimate(NamedTuple):
    """A value with its interval, to be drawn as a strip."""

    label: str
    mean: float | None
    ci: Sequence[float] | None
    tone: str
    """CSS class: what colour it has."""


class Strip(NamedTuple):
    """One estimate with its interval; positions in percent of the strip's width."""

    label: str
    text: str
    tone: str
    low: float
    middle: float
    high: float


class StripPanel(NamedTuple):
    """Estimates of one quantity on a common axis."""

    title: str
    unit: str
    strips: list[Strip]
    ticks: list[Tick]
    zero: float | None
    """Position of the line of no difference."""


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that lie within [low, high], about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor * 1.0001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's number, short."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k".replace("-", "−")
    text = f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:g}"
    return text.replace("e-0", "e-").replace("-", "−")


def percent_tick(value: float) -> str:
    """A tick's share in percent, with digits where whole percents would be the same number twice."""
    return f"{100 * value:.4g}%".replace("-", "−")


def line_chart(title: str, unit: str, series: Sequence[tuple[str, Points]]) -> LineChart:
    """Lay out curves over a common x axis, the optimizer's steps.

    Args:
        title: Above the chart.
        unit: Of the values.
        series: (legend, [(step, value), …]) each, at least one point in all.
    """
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    x_low, x_high = widened(min(xs), max(xs), 0.0)
    y_low, y_high = widened(min(ys), max(ys), 0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        down = HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
        return round(across, 1), round(down, 1)

    lines = []
    for legend, points in series:
        placed = [place(x, y) for x, y in points]
        smooth = smoothed(points)
        lines.append(
            Line(legend, path(placed), path([place(x, y) for x, y in smooth]), placed if len(placed) <= 12 else [])
        )
    return LineChart(
        title=title,
        unit=unit,
        lines=lines,
        x_ticks=[Tick(place(x, y_low)[0], tick_text(x)) for x in nice_ticks(x_low, x_high)],
        y_ticks=[Tick(place(x_low, y)[1], tick_text(y)) for y in nice_ticks(y_low, y_high)],
        box=(_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM),
    )


def smoothed(points: Points, fewest: int = 30) -> list[tuple[float, float]]:
    """Centred running mean over a tenth of the points; nothing where there are few points.

    Windows are symmetric, or a falling curve would be bent at its ends. They shrink towards the ends to half their size
    and the curve stops there, or it would end on the noise of single points.
    """
    if len(points) < fewest:
        return []
    half = max(2, len(points) // 20)
    result = []
    for i in range(half // 2, len(points) - half // 2):
        x, reach = points[i][0], min(half, i, len(points) - 1 - i)
        window = [y for _, y in points[i - reach : i + reach + 1]]
        result.append((x, sum(window) / len(window)))
    return result


def stage_charts(curves: Mapping[str, Points]) -> list[LineChart]:
    """The panels of `PANELS` for which a stage logged something."""
    charts = []
    for title, unit, members in PANELS:
        series = [(legend, curves[key]) for key, legend in members if curves.get(key)]
        if sum(len(points) for _, points in series) > 1:
            charts.append(line_chart(title, unit, series))
    return charts


def strip_panel(
    title: str,
    unit: str,
    estimates: Sequence[Estimate],
    write: Callable[[float | None, Sequence[float] | None], str],
    zero: float | None = None,
    tick: Callable[[float], str] = tick_text,
) -> StripPanel | None:
    """Lay out estimates under each other.

    Args:
        title: Above the panel.
        unit: Of the values, below their axis.
        estimates: Those without a mean are left out.
        write: Turns mean and interval into text.
        zero: The value of no difference, always in view.
        tick: Writes the number at a tick.

    Returns:
        The panel, or None where no estimate has a mean.
    """
    known = [(estimate, estimate.mean) for estimate in estimates if estimate.mean is not None]
    if not known:
        return None
    ends = [end for estimate, mean in known for end in (*(estimate.ci or ()), mean)]
    ends += [] if zero is None else [zero]
    low, high = widened(min(ends), max(ends), 0.02)

    def place(value: float) -> float:
        return round(_STRIP_MARGIN + (value - low) / (high - low) * (100 - 2 * _STRIP_MARGIN), 2)

    strips = []
    for estimate, mean in known:
        from_, to = estimate.ci or (mean, mean)
        text = write(mean, estimate.ci)
        strips.append(Strip(estimate.label, text, estimate.tone, place(from_), place(mean), place(to)))
    ticks = [Tick(place(value), tick(value)) for value in nice_ticks(low, high)]
    return StripPanel(title, unit, strips, ticks, None if zero is None else place(zero))


def widened(low: float, high: float, share: float) -> tuple[float, float]:
    """The range with a margin; a range without width gets some."""
    if high > low:
        return low - share * (high - low), high + share * (high - low)
    margin = abs(low) * 0.1 or 0.5
    return low - margin, high + margin


def path(points: Points) -> str:
    """Points as SVG writes them."""
    return " ".join(f"{x:g},{y:g}" for x, y in points)
