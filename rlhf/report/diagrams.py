"""Geometry of diagrams with two labelled axes: numbers in, positions out. `templates/charts.html` draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from rlhf.evaluation.calibration import CalibrationBin
from rlhf.evaluation.formatting import estimate, number, percent
from rlhf.evaluation.overoptimisation import Point
from rlhf.evaluation.reward_model import Distribution, SetName
from rlhf.report.charts import Tick, nice_ticks, path, tick_text, widened

WIDTH, HEIGHT = 360, 240
"""Size of a diagram in its own units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 26, 34


class Mark(NamedTuple):
    """A point with its interval, in the diagram's units."""

    x: float
    y: float
    low: float
    high: float
    text: str
    """Shown when the pointer is on it."""
    chosen: bool = False


class Series(NamedTuple):
    """What belongs together: legend, a line through SVG points, and marks."""

    legend: str
    points: str
    marks: list[Mark]


class Guide(NamedTuple):
    """A line to compare with, from one point to another, and what it is."""

    x1: float
    y1: float
    x2: float
    y2: float
    text: str


class Diagram(NamedTuple):
    """A diagram in a box of WIDTH x HEIGHT units."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Series]
    guides: list[Guide]
    box: tuple[int, int, int, int] = (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM)


class Axes(NamedTuple):
    """Ranges of the two axes."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in the diagram's units."""
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        return (
            round(_LEFT + across * (WIDTH - _LEFT - _RIGHT), 1),
            round(HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM), 1),
        )

    def ticks(self, write: Callable[[float], str] = tick_text) -> tuple[list[Tick], list[Tick]]:
        """Marks of both axes."""
        across = [Tick(self.place(x, self.y_low)[0], write(x)) for x in nice_ticks(self.x_low, self.x_high)]
        up = [Tick(self.place(self.x_low, y)[1], write(y)) for y in nice_ticks(self.y_low, self.y_high)]
        return across, up

    def mark(self, x: float, y: float, interval: Sequence[float] | None, text: str, chosen: bool = False) -> Mark:
        """A point with its interval."""
        low, high = interval or (y, y)
        return Mark(*self.place(x, y), self.place(x, low)[1], self.place(x, high)[1], text, chosen)


def reliability(
    curve: Sequence[CalibrationBin],
    least: float = 0.5,
    title: str = "Calibration",
    x_label: str = "confidence in the preferred reply",
    y_label: str = "pairs ranked right [95%]",
    counted: str = "pairs",
) -> Diagram:
    """How often a model is right, over how sure it is.

    Args:
        curve: As `calibration.calibration_curve` or `equal_mass_curve` gives.
        least: The least sure that a model can be: of two sides one half.
        title: Above the diagram.
        x_label: What the model is sure of.
        y_label: How often that is right.
        counted: What is counted.
    """
    axes = Axes(least, 1.0, 0.0, 1.0)
    marks = [
        axes.mark(
            place["confidence"], place["accuracy"], place["ci"],
            f"{percent(place['confidence'])} sure, right in {percent(place['accuracy'], place['ci'])} of "
            f"{place['n']:,} {counted}",
        )
        for place in curve
    ]  # fmt: skip
    diagonal = Guide(*axes.place(least, least), *axes.place(1.0, 1.0), "as sure as right")
    line = path([(mark.x, mark.y) for mark in marks])
    return Diagram(
        title, x_label, y_label, *axes.ticks(percent), series=[Series("", line, marks)], guides=[diagonal],
    )  # fmt: skip


def histogram(scores: Distribution, sets: Sequence[tuple[SetName, str]]) -> Diagram:
    """Scores of several sets of completions as outlines over common edges; heights are shares of each set.

    Args:
        scores: As `reward_model.distribution` gives.
        sets: (set, legend), those drawn.
    """
    edges = scores["edges"]
    known = [(legend, scores[name]) for name, legend in sets if name in scores]
    shares = [[count / max(1, scored["n"]) for count in scored["counts"]] for _, scored in known]
    tallest = max((max(heights) for heights in shares), default=0)
    axes = Axes(*widened(edges[0], edges[-1], 0.0), 0.0, 1.05 * tallest or 1.0)
    series = []
    for (legend, scored), heights in zip(known, shares, strict=True):
        corners = [(edges[0], 0.0)]
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
            corners += [(left, height), (right, height)]
        corners.append((edges[-1], 0.0))
        spread = f"{legend}: {number(scored['mean'], 2)} ± {number(scored['std'], 2)} ({scored['n']:,})"
        series.append(Series(spread, path([axes.place(x, y) for x, y in corners]), []))
    across, _ = axes.ticks()
    _, up = axes.ticks(percent)
    return Diagram("Scores", "score of the reward model", "share of the replies", across, up, series, [])


def tracked(points: Sequence[Point], selected: int | None, judge: str | None = None) -> list[Diagram]:
    """The checkpoint judge's score, and what was maximised, over how far each checkpoint is from the stage's start.

    The axis is the square root of the KL (Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization"), in which
    the rise is about straight. Two diagrams, since the two are not in the same units.

    Args:
        points: As `overoptimisation.point` gives, in order of training.
        selected: The step whose policy was kept.
        judge: The checkpoint judge's name.
    """
    wanted: list[tuple[Literal["checkpoint_judge", "proxy"], str, str]] = [
        (
            "checkpoint_judge",
            f"Checkpoint judge{f' ({judge})' if judge else ''}, not seen in training",
            "mean score [95%]",
        ),
        ("proxy", "What was maximised", "standard deviations of the start [95%]"),
    ]
    drawn = []
    for key, title, unit in wanted:
        interval_of: Literal["checkpoint_judge_ci", "proxy_ci"] = f"{key}_ci"  # type: ignore[assignment]  # of these two
        known = [(checkpoint, value) for checkpoint in points if (value := checkpoint[key]) is not None]
        if not known:
            continue
        ends = [end for checkpoint, value in known for end in (value, *(checkpoint[interval_of] or []))]
        farthest = max(root_kl(checkpoint) for checkpoint, _ in known)
        axes = Axes(0.0, 1.04 * farthest or 1.0, *widened(min(ends), max(ends), 0.06))
        marks = [
            axes.mark(
                root_kl(checkpoint), value, checkpoint[interval_of],
                f"step {checkpoint['step']}: {estimate(value, checkpoint[interval_of])}, "
                f"KL {number(checkpoint['kl'], 1)} nats",
                checkpoint["step"] == selected,
            )
            for checkpoint, value in known
        ]  # fmt: skip
        kept = [Guide(mark.x, _TOP, mark.x, HEIGHT - _BOTTOM, f"step {selected} kept") for mark in marks if mark.chosen]
        line = path([(mark.x, mark.y) for mark in marks])
        drawn.append(
            Diagram(title, "√KL to the start, √nats a reply", unit, *axes.ticks(), [Series("", line, marks)], kept)
        )
    return drawn


def root_kl(checkpoint: Point) -> float:
    """Square root of a checkpoint's KL; an estimate may lie below zero, where KL does not."""
    return math.sqrt(max(0.0, checkpoint["kl"]))
