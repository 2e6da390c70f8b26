"""The difference of two runs in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf.evaluation.formatting import estimate, number, percent
from rlhf.history.differences import Compared, Metric, Outcome, RunDifference
from rlhf.history.settings import Difference
from rlhf.secrets import masked

_ABSENT = "–"
_STYLES = {"better": "green", "worse": "red", "no difference": "yellow", "doubtful": "yellow"}


def difference_table(difference: RunDifference) -> Group:
    """A section for each kind of difference, those that are empty in one line."""
    parts: list[RenderableType] = [
        Text(f"first   {difference['first']}"),
        Text(f"second  {difference['second']}"),
        Text(),
    ]
    for side, stages in (("first", difference["only_first"]), ("second", difference["only_second"])):
        if stages:
            parts.append(Text(f"only the {side} has {', '.join(stages)}"))
    empty = []
    for title in ("settings", "data", "packages"):
        rows: list[Difference] = difference[title]  # type: ignore[literal-required]
        if rows:
            parts += [_table(title.capitalize(), ("First", "Second"), map(_cells, rows)), Text()]
        else:
            empty.append(title)
    if empty:
        parts += [Text(f"no difference in {', '.join(empty)}"), Text()]
    if difference["metrics"]:
        heading = ("First", "Second", "Second − first [95%]")
        parts += [_table("Measured", heading, map(_metric, difference["metrics"])), Text()]
    if difference["comparisons"]:
        parts += [_table("Within each run", ("First", "Second"), map(_compared, difference["comparisons"])), Text()]
    if difference["policies"]:
        heading = ("Difference [95%]", "Win rate [95%]", "Verdict")
        rows_across = (
            (
                f"{row['policy']} by {row['judge']}",
                estimate(row["mean_difference"], row["difference_ci"], signed=True),
                percent(row["win_rate"], row["win_rate_ci"]),
                row["verdict"] if row["verdict"] != "no difference" else "cannot be told",
            )
            for row in difference["policies"]
        )
        parts += [_table("The second run's policies against the first's, on the same prompts", heading, rows_across)]
    parts += [Text(f"{policy}: not compared: {why}", style="yellow") for policy, why in difference["problems"].items()]
    parts += [Text(note, style="yellow") for note in difference["notes"]]
    return Group(*parts)


def _table(title: str, headings: Sequence[str], rows: Any) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("", *headings):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


def _cells(row: Difference) -> tuple[str, ...]:
    return row["key"], *(_value(row[side]) if side in row else _ABSENT for side in ("first", "second"))  # type: ignore[literal-required]


def _value(value: Any) -> str:
    return masked(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _metric(row: Metric) -> tuple[str, ...]:
    change = row["second"] - row["first"]
    text = estimate(change, row["interval"], signed=True)
    if row["interval"] is not None and row["interval"][0] <= 0 <= row["interval"][1]:
        text += ", cannot be told"
    return f"{row['stage']}: {row['metric']}", number(row["first"], 4), number(row["second"], 4), text


def _compared(row: Compared) -> tuple[str, ...]:
    name = f"{row['policy']} vs {row['baseline']} by {row['judge']}"
    return name, *(_outcome(row[side]) for side in ("first", "second"))  # type: ignore[literal-required]


def _outcome(outcome: Outcome | None) -> str:
    if outcome is None:
        return _ABSENT
    return f"{estimate(outcome['mean_difference'], outcome['difference_ci'], signed=True)} {outcome['verdict']}"
