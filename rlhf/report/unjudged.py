"""What a report says of policies that nothing judges: what was measured of them, and that it is no verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rlhf.evaluation.formatting import count, estimate, number, percent
from rlhf.evaluation.unjudged import Measured
from rlhf.report import charts, schema
from rlhf.report.charts import Estimate
from rlhf.report.names import Names, Statement, capital
from rlhf.report.schema import Report
from rlhf.workflow import BASE, kind_of


class _Shown(NamedTuple):
    """How one measure is written."""

    title: str
    unit: str
    share: bool = False
    """Whether it is a share, whose differences are percentage points."""
    brief: bool = False
    """Whether the terminal shows it."""


MEASURES = {
    "loss": _Shown("Held-out loss", "nats a token", brief=True),
    "margin": _Shown("Margin of held-out pairs", "nats, chosen less rejected", brief=True),
    "chosen": _Shown("Log-probability of chosen replies", "nats a reply"),
    "length": _Shown("Length", "tokens a reply", brief=True),
    "finished": _Shown("Ended by itself", "share of replies", share=True, brief=True),
    "distinct_1": _Shown("Distinct words", "share of the words of a prompt's replies", share=True),
    "distinct_2": _Shown(
        "Distinct pairs of words", "share of the word pairs of a prompt's replies", share=True, brief=True
    ),
    "repetition": _Shown("Repetition", "share of runs of four words met before in the reply", share=True),
}
"""By `Measured.measure`."""


def statements(report: Report) -> Iterator[Statement]:
    """That there is no verdict, and what was measured of each policy beside the one it was trained from."""
    if not schema.unjudged(report):
        return
    yield Statement(
        ("unjudged",), "measured", "No judge, so no verdict on the quality of replies",
        "what follows was measured without one; a reward stage or an entry under rewards: would judge",
    )  # fmt: skip
    names = Names.of(report)
    for row in own_rows(report):
        if row["measure"] in _SENTENCES and row["policy"] == kind_of(row["policy"]):
            yield _SENTENCES[row["measure"]](row, names)


def _loss(row: Measured, names: Names) -> Statement:
    policy, baseline = names.policy(row["policy"]), names.policy(row["baseline"])
    finding = {
        1: f"The held-out loss of {policy} is higher than that of {baseline}",
        -1: f"The held-out loss of {policy} is lower than that of {baseline}",
        0: f"No difference shown between the held-out losses of {policy} and {baseline}",
    }[_sign(row)]
    numbers = (
        f"{number(row['policy_mean'], 3)} and {number(row['baseline_mean'], 3)} nats a token, difference "
        f"{estimate(row['mean_difference'], row['difference_ci'], signed=True)} over {count(row['n'], 'prompt')}"
    )
    return Statement(("measured", row["policy"], row["baseline"], "loss"), "measured", finding, numbers)


def _margin(row: Measured, names: Names) -> Statement:
    policy, baseline = names.policy(row["policy"]), names.policy(row["baseline"])
    finding = capital(
        f"{policy} prefers the chosen reply more than {baseline} does in {percent(row['higher'], row['higher_ci'])} of "
        "held-out pairs"
    )
    numbers = (
        f"log p(chosen) less log p(rejected) changed by "
        f"{estimate(row['mean_difference'], row['difference_ci'], signed=True)} nats over {count(row['n'], 'prompt')}; "
        "chance is 50%"
    )
    return Statement(("measured", row["policy"], row["baseline"], "margin"), "measured", finding, numbers)


_SENTENCES: dict[str, Callable[[Measured, Names], Statement]] = {"loss": _loss, "margin": _margin}


def _sign(row: Measured) -> int:
    """Whether the interval of a difference lies above zero (1), below (-1), or holds it (0)."""
    low, high = row["difference_ci"] or (0.0, 0.0)
    return 1 if low > 0 else -1 if high < 0 else 0


def own_rows(report: Report) -> list[Measured]:
    """What was measured of each policy beside the one it was trained from."""
    parents = schema.parents(report)
    return [row for row in report["measured"] if row["baseline"] == parents.get(row["policy"], BASE)]


COLUMNS = ("Comparison", "Measure", "Unit", "Before", "After", "Difference [95%]", "Higher in [95%]", "n")
BRIEF = ("Comparison", "Measure", "Before", "After", "Difference [95%]")
"""What fits a terminal of 80 columns."""


def shown_rows(report: Report) -> list[Measured]:
    """What was measured, without the measures that are zero of every policy."""
    nonzero = {row["measure"] for row in report["measured"] if row["policy_mean"] or row["baseline_mean"]}
    return [row for row in report["measured"] if row["measure"] in nonzero]


def brief_rows(report: Report) -> list[Measured]:
    """What the terminal shows: each policy beside the one it was trained from, of several seeds the first."""
    rows = [row for row in own_rows(report) if row["policy"] == kind_of(row["policy"])]
    return [row for row in rows if MEASURES[row["measure"]].brief]


def cells(row: Measured, names: Names) -> tuple[str, ...]:
    """What was measured of two policies, as `COLUMNS` names the cells."""
    shown = MEASURES[row["measure"]]
    before, after = (
        percent(value) if shown.share else number(value, 3 if value is not None and abs(value) < 1 else None)
        for value in (row["baseline_mean"], row["policy_mean"])
    )
    return (
        names.pair(row["policy"], row["baseline"]),
        shown.title,
        shown.unit,
        before,
        after,
        _points(row["mean_difference"], row["difference_ci"]) + " points"
        if shown.share
        else _signed(row["mean_difference"], row["difference_ci"]),
        percent(row["higher"], row["higher_ci"]),
        f"{row['n']:,}",
    )


def panels(report: Report) -> list[charts.StripPanel]:
    """The differences of each measure with their intervals; of several seeds the first."""
    names, drawn = Names.of(report), []
    places = {entry["policy"]: place for place, entry in enumerate(report["policies"])}
    for measure, shown in MEASURES.items():
        first = [row for row in shown_rows(report) if row["policy"] == kind_of(row["policy"])]
        rows = [row for row in first if row["measure"] == measure]
        strips = [
            Estimate(
                names.pair(row["policy"], row["baseline"]),
                row["mean_difference"], row["difference_ci"], f"p{places[row['policy']] % 6}",
            )
            for row in rows
        ]  # fmt: skip
        title = f"{shown.title}, difference"
        tick = charts.percent_tick if shown.share else charts.tick_text
        unit = f"percentage points, {shown.unit}" if shown.share else shown.unit
        drawn.append(charts.strip_panel(title, unit, strips, _points if shown.share else _signed, 0.0, tick))
    return [panel for panel in drawn if panel]


def _signed(mean: float | None, interval: Sequence[float] | None) -> str:
    return estimate(mean, interval, signed=True)


def _points(mean: float | None, interval: Sequence[float] | None) -> str:
    """A difference of shares in percentage points."""
    points = None if interval is None else [100 * end for end in interval]
    return estimate(None if mean is None else 100 * mean, points, digits=1, signed=True)
