"""The comparisons as a table: in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf.evaluation import words
from rlhf.evaluation.words import Report

_STYLES = {"better": "green", "worse": "red", "no difference": "yellow"}
_MARKS = {"better": "▲", "worse": "▼", "no difference": "="}

COMPARISON_HEADER = (
    "Comparison", "Judge", "Scores", "Difference [95%]", "Win rate [95%]", "KL", "Tokens", "n", "Verdict",
)  # fmt: skip
_RIGHT = "Scores,Difference [95%],Win rate [95%],KL,Tokens,n"

_NARROW = ("Comparison", "Judge", "Difference [95%]", "Win rate [95%]", "Verdict")
"""What fits a terminal of 80 columns; the rest is in the sentences below the table, and in the page."""


def comparison_cells(report: Report) -> list[tuple[str, ...]]:
    """The comparisons as text, one tuple of `COMPARISON_HEADER` each."""
    return [
        (
            f"{words.label(row['policy'])} vs {words.label(row['baseline'])}",
            row["judge"],
            f"{words.number(row['policy_mean'])} vs {words.number(row['baseline_mean'])}",
            words.estimate(row["mean_difference"], row["difference_ci"], signed=True),
            words.percent(row["win_rate"], row["win_rate_ci"]),
            words.number(row["kl"]),
            words.number(row["mean_length"]),
            f"{row['n']:,}",
            row["verdict"],
        )
        for row in report["comparisons"]
    ]


def terminal_table(report: Report) -> RenderableType:
    """The verdicts, the comparisons and the notices of a report, for a rich console."""
    parts: list[RenderableType] = []
    cells = comparison_cells(report)
    if cells:
        table = Table(title=f"{report['name']}: held-out comparisons", title_justify="left", box=box.SIMPLE_HEAD)
        shown = [COMPARISON_HEADER.index(heading) for heading in _NARROW]
        for heading in _NARROW:
            left = heading in ("Comparison", "Judge", "Verdict")
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
        for row in cells:
            table.add_row(*(Text(row[place], style=_STYLES.get(row[place], "")) for place in shown))
        parts += [table, Text()]
    for statement in words.statements(report):
        mark = Text(f"{_MARKS[statement.kind]} ", style=f"bold {_STYLES[statement.kind]}")
        parts.append(mark + Text(f"{statement.finding}: ", style="bold") + Text(f"{statement.numbers}."))
    if not cells:
        parts += [Text(f"{words.label(name)}: {line}") for name, line in _stage_lines(report)]
    parts += [Text(f"! {notice}", style="yellow") for notice in words.notices(report)]
    return Group(*parts)


def _stage_lines(report: Report) -> list[tuple[str, str]]:
    facts = [(name, words.stage_facts(name, metrics)) for name, metrics in report["stages"].items()]
    return [(name, "; ".join(lines)) for name, lines in facts if lines]


def comparison_table_md(report: Report) -> str:
    """The comparisons as a Markdown table; empty where there are none."""
    cells = comparison_cells(report)
    return markdown_table(COMPARISON_HEADER, cells, right=_RIGHT) if cells else ""


def policy_table_md(report: Report) -> str:
    """Each policy's mean scores, length, endings and KL as a Markdown table; empty where there are none."""
    judges = list(report["policies"][0]["scores"]) if report["policies"] else []
    header = ["Policy", *(f"{judge} [95%]" for judge in judges), "Tokens", "Ended", "KL (nats)"]
    rows = [
        [
            words.label(entry["policy"]),
            *(words.estimate(entry["scores"][judge]["mean"], entry["scores"][judge]["ci"]) for judge in judges),
            words.estimate(entry["length"]["mean"], entry["length"]["ci"], digits=1),
            words.percent(entry["finished"]["mean"]),
            words.number(entry["kl"]["mean"])
            + (f" to {words.label(entry['kl_reference'])}" if entry["kl_reference"] else ""),
        ]
        for entry in report["policies"]
    ]
    return markdown_table(header, rows, right=",".join(header[1:])) if rows else ""


def ledger_table_md(report: Report) -> str:
    """Where the rows of each stage's sets went, as a Markdown table; empty where there is no ledger."""
    header = ("Stage", "Set", "Read", "Dropped", "Evaluated", "Trained", "Truncated", "EOS lost")
    rows = []
    for name, metrics in report["stages"].items():
        for kind, entry in metrics.get("rows", {}).items():
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in entry.get("dropped", {}).items() if n)
            fields = ("evaluated", "trained", "truncated", "eos_lost")
            counts = (f"{entry.get(field, 0):,}" for field in fields)
            rows.append((words.label(name), kind, f"{entry.get('read', 0):,}", reasons or "0", *counts))
    return markdown_table(header, rows, right="Read,Evaluated,Trained,Truncated,EOS lost") if rows else ""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], right: str = "") -> str:
    """A Markdown table.

    Args:
        header: Column headings.
        rows: Cells; anything that would break the table is escaped.
        right: Headings of the columns set flush right, with commas between.
    """
    flush = set(right.split(","))
    lines = [header, ["---:" if heading in flush else "---" for heading in header], *rows]
    return "\n".join("| " + " | ".join(_md_cell(cell) for cell in line) + " |" for line in lines)


def _md_cell(cell: Any) -> str:
    return " ".join(str(cell).replace("|", "\\|").replace("<", "&lt;").split())
