"""The tables of a report, as text a cell: on the page, in Markdown and in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as TerminalTable
from rich.text import Text

from rlhf.evaluation.gate_verdict import BATCH_TOLERANCE
from rlhf.report import sentences
from rlhf.report.diagrams import root_kl
from rlhf.report.sentences import Report
from rlhf.workflow import kind_of

_STYLES = {"better": "green", "worse": "red", "no difference": "yellow", "doubtful": "yellow", "alarm": "red"}
MARKS = {"better": "▲", "worse": "▼", "no difference": "=", "doubtful": "?", "alarm": "!"}

COMPARISON_HEADER = (
    "Comparison", "Judge", "Scores", "Difference [95%]", "Win rate [95%]", "At equal length [95%]", "p", "KL", "Tokens",
    "n", "Verdict",
)  # fmt: skip
_LEFT = {
    "Comparison", "Judge", "Verdict", "Set", "Stage", "Group", "Measure", "Policy", "Reward model", "Gate", "",
    "What changes", "Dropped",
}  # fmt: skip
"""Columns of words; those of numbers are set flush right."""

ON_PAGE = tuple(heading for heading in COMPARISON_HEADER if heading not in ("KL", "Tokens"))
"""What fits the page, on which each policy's KL and length have figures of their own."""
_NARROW = ("Comparison", "Judge", "Difference [95%]", "Win rate [95%]", "Verdict")
"""What fits a terminal of 80 columns; the rest is in the sentences below the table, and in the page."""


class Table(NamedTuple):
    """Headings and cells of one table; without rows it is not shown. A last column named Verdict has marks."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """The table in Markdown; empty where it has no rows."""
        right = ",".join(heading for heading in self.header if heading not in _LEFT)
        return markdown_table(self.header, self.rows, right) if self.rows else ""


def comparison_table(report: Report, columns: Sequence[str] = COMPARISON_HEADER) -> Table:
    """The comparisons over all prompts; of `COMPARISON_HEADER` some columns."""
    rows = [
        (
            sentences.versus(row),
            row["judge"],
            "–"
            if row["policy_mean"] is None
            else f"{sentences.number(row['policy_mean'])} vs {sentences.number(row['baseline_mean'])}",
            sentences.estimate(row["mean_difference"], row["difference_ci"], signed=True),
            sentences.percent(row["win_rate"], row["win_rate_ci"]),
            sentences.percent(row["win_rate_length_controlled"], row["win_rate_length_controlled_ci"]),
            probability(row["p_adjusted"]),
            sentences.number(row["kl"]),
            sentences.number(row["mean_length"]),
            f"{row['n']:,}",
            sentences.shown_verdict(row),
        )
        for row in report["comparisons"]
    ]
    places = [COMPARISON_HEADER.index(heading) for heading in columns]
    return Table(tuple(columns), [tuple(cells[place] for place in places) for cells in rows])


def terminal_table(report: Report) -> RenderableType:
    """The verdicts, the comparisons and the notices of a report, for a rich console."""
    parts: list[RenderableType] = []
    cells = _narrow_rows(report)
    if cells:
        table = TerminalTable(
            title=f"{report['name']}: held-out comparisons", title_justify="left", box=box.SIMPLE_HEAD
        )
        for heading in _NARROW:  # names are folded where there is no room, not cut: two could begin alike
            name = heading in ("Comparison", "Judge")
            left = name or heading == "Verdict"
            table.add_column(heading, justify="left" if left else "right", no_wrap=not name, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        parts += [table, Text()]
    for statement in sentences.statements(report):
        mark = Text(f"{MARKS[statement.kind]} ", style=f"bold {_STYLES[statement.kind]}")
        parts.append(mark + Text(f"{statement.finding}: ", style="bold") + Text(f"{statement.numbers}."))
    if not cells:
        parts += [Text(f"{sentences.label(name)}: {line}") for name, line in stage_lines(report)]
    parts += [Text(f"! {notice}", style="yellow") for notice in sentences.notices(report)]
    return Group(*parts)


def _narrow_rows(report: Report) -> list[tuple[str, ...]]:
    """The comparisons in the columns of `_NARROW`; what was trained with several seeds over all of them."""
    over_seeds = {(row["policy"], row["baseline"], row["judge"]): row for row in report["seeds"]}
    rows = []
    for row in report["comparisons"]:
        if row["policy"] != kind_of(row["policy"]):
            continue
        seeds = over_seeds.get((row["policy"], kind_of(row["baseline"]), row["judge"]))
        if seeds is None:
            cells = comparison_table({**report, "comparisons": [row]}, _NARROW).rows[0]
        else:
            many = f"{sentences.versus(seeds)}, {sentences.count(seeds['n_seeds'], 'seed')}"
            difference = sentences.estimate(seeds["mean"], seeds["ci"], signed=True)
            cells = (
                many,
                seeds["judge"],
                difference,
                sentences.percent(seeds["win_rate"]),
                sentences.shown_verdict(seeds),
            )
        rows.append(cells)
    return rows


def stage_lines(report: Report) -> list[tuple[str, str]]:
    """Held-out metrics of each stage that has some, as one line."""
    facts = [(name, sentences.stage_facts(name, metrics)) for name, metrics in report["stages"].items()]
    return [(name, "; ".join(lines)) for name, lines in facts if lines]


def probability(p: float | None) -> str:
    """A p-value, with a third digit where it decides; `<0.001` and not 0."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def seed_table(report: Report) -> Table:
    """What was trained with several seeds, over all of them."""
    rows = [
        (
            sentences.versus(row),
            row["judge"],
            f"{row['n_seeds']}",
            sentences.estimate(row["mean"], row["ci"], signed=True),
            f"{sentences.number(row['min'], 2, signed=True)} to {sentences.number(row['max'], 2, signed=True)}",
            sentences.number(row["std"]),
            sentences.percent(row["win_rate"]),
            probability(row["p_adjusted"]),
            sentences.shown_verdict(row),
        )
        for row in report["seeds"]
    ]
    header = ("Comparison", "Judge", "Seeds", "Difference [95%]", "Single seeds", "SD of seeds", "Win rate", "p",
              "Verdict")  # fmt: skip
    return Table(header, rows)


def own_groups(report: Report) -> list[Mapping[str, Any]]:
    """The comparisons within groups that are shown: against the parent."""
    parents = (report["evaluation"] or {}).get("parents", {})
    return [row for row in report["groups"] if row["baseline"] == parents.get(row["policy"], "base")]


def group_table(report: Report) -> Table:
    """Within each group of prompts, policies against what they came from."""
    rows = [
        (
            row["group"],
            sentences.versus(row),
            row["judge"],
            sentences.estimate(row["mean_difference"], row["difference_ci"], signed=True),
            sentences.percent(row["win_rate"], row["win_rate_ci"]),
            probability(row["p_adjusted"]),
            f"{row['n']:,}",
            sentences.shown_verdict(row),
        )
        for row in own_groups(report)
    ]
    return Table(("Group", "Comparison", "Judge", "Difference [95%]", "Win rate [95%]", "p", "n", "Verdict"), rows)


def retained_table(report: Report) -> Table:
    """What was not to be lost: each policy against what it came from and the base."""
    rows = []
    for row in report["retained"]:
        unit = sentences.UNITS[row["measure"]]
        rows.append(
            (
                row["judge"],
                sentences.versus(row),
                row["measure"] + (f", {unit}" if unit else ""),
                sentences.number(row["baseline_mean"]),
                sentences.number(row["policy_mean"]),
                sentences.estimate(row["mean_difference"], row["difference_ci"], signed=True),
                probability(row["p_adjusted"]),
                f"{row['n']:,}",
                row["verdict"],
            )
        )
    return Table(("Set", "Comparison", "Measure", "Before", "After", "Change [95%]", "p", "n", "Verdict"), rows)


def gate_table(report: Report) -> Table:
    """The reward models beside the ruler."""
    header = ("Reward model", "Ranked right [95%]", "Length alone [95%]", "Chance", "Prefers the longer",
              "Calibration error", "Pairs", "Gate")  # fmt: skip
    rows = [
        (
            name,
            sentences.percent(found["accuracy"], found["accuracy_ci"]),
            sentences.percent(found["length_baseline"], found.get("length_baseline_ci")),
            "50%",
            sentences.percent(found["prefers_longer"]),
            sentences.percent(found["ece"]),
            f"{found['n']:,}",
            "passed" if found["passed"] else "shut",
        )
        for name, found in report["stages"].get("gate", {}).get("models", {}).items()
    ]
    return Table(header, rows)


def invariance_table(found: Mapping[str, Any]) -> Table:
    """How far a reward model's scores move with what should not matter, in their standard deviations."""
    moved = found["invariance"]
    rows = [("padding and company in the batch, largest", _spread(moved["batch"]), _spread(BATCH_TOLERANCE))]
    if moved["eos"] is not None:
        rows.append(("a second end token, mean", _spread(moved["eos"]), "–"))
    return Table(("What changes", "Score moves by, SD", "At most"), rows)


def tracked_table(metrics: Mapping[str, Any]) -> Table:
    """The checkpoints of a stage: how far they went, what was wanted and what was maximised."""
    rows = [
        (
            f"{one['step']:,}",
            sentences.number(one["kl"], 2),
            sentences.number(root_kl(one), 2),
            sentences.estimate(one["checkpoint_judge"], one["checkpoint_judge_ci"]),
            sentences.estimate(one["proxy"], one["proxy_ci"]),
            sentences.number(one["length"], 1),
            "kept" if one["step"] == metrics.get("selected_step") else "start" if one["step"] == 0 else "",
        )
        for one in metrics.get("tracked") or []
    ]
    header = (
        "Step",
        "KL (nats a reply)",
        "√KL",
        "Checkpoint judge [95%]",
        "Maximised (SD) [95%]",
        "Tokens a reply",
        "",
    )
    return Table(header, rows)


def _spread(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def comparison_table_md(report: Report) -> str:
    """The comparisons as a Markdown table; empty where there are none."""
    return comparison_table(report).markdown()


def policy_table_md(report: Report) -> str:
    """Each policy's mean scores, length, endings and KL as a Markdown table; empty where there are none."""
    judges = list(report["policies"][0]["scores"]) if report["policies"] else []
    judges = [judge for judge in judges if judge not in report["comparing"]]  # these give no scores
    header = ["Policy", *(f"{judge} [95%]" for judge in judges), "Tokens", "Ended", "KL (nats)"]
    rows = [
        [
            sentences.label(entry["policy"]),
            *(sentences.estimate(entry["scores"][judge]["mean"], entry["scores"][judge]["ci"]) for judge in judges),
            sentences.estimate(entry["length"]["mean"], entry["length"]["ci"], digits=1),
            sentences.percent(entry["finished"]["mean"]),
            sentences.number(entry["kl"]["mean"])
            + (f" to {sentences.label(entry['kl_reference'])}" if entry["kl_reference"] else ""),
        ]
        for entry in report["policies"]
    ]
    return markdown_table(header, rows, right=",".join(header[1:])) if rows else ""


def finding_lines(report: Report) -> list[str]:
    """What was found in the data of each stage, a line each, with the stages that read it."""
    stages: dict[str, list[str]] = {}
    for name, metrics in report["stages"].items():
        for line in metrics.get("findings", {}).get("lines", []):
            stages.setdefault(f"{metrics['findings']['set']}: {_md_cell(line)}", []).append(sentences.label(name))
    return [f"{line} ({', '.join(names)})" for line, names in stages.items()]


def ledger_table_md(report: Report) -> str:
    """Where the rows of each stage's sets went, as a Markdown table; empty where there is no ledger."""
    header = ("Stage", "Set", "Read", "Dropped", "Evaluated", "Trained", "Truncated", "EOS lost")
    rows = []
    for name, metrics in report["stages"].items():
        for kind, entry in metrics.get("rows", {}).items():
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in entry.get("dropped", {}).items() if n)
            fields = ("evaluated", "trained", "truncated", "eos_lost")
            counts = (f"{entry.get(field, 0):,}" for field in fields)
            rows.append((sentences.label(name), kind, f"{entry.get('read', 0):,}", reasons or "0", *counts))
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
