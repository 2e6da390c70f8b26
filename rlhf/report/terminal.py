"""A report in the terminal: the table of verdicts, a line a policy, and what limits the evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf.evaluation.compare import MIN_PROMPTS, Comparison
from rlhf.evaluation.formatting import count, estimate, number, percent
from rlhf.evaluation.seeds import SeedSummary
from rlhf.evaluation.summary import Summary
from rlhf.report import rounds, schema, sentences, tables
from rlhf.report.caveats import caveats
from rlhf.report.names import Names, shown_verdict
from rlhf.report.schema import Report
from rlhf.workflow import is_base, kind_of

_STYLES = {
    "better": "green", "worse": "red", "no difference": "yellow", "doubtful": "yellow", "alarm": "red",
    "measured": "default",
}  # fmt: skip
_HEADER = ("Comparison", "Judge", "Difference [95%]", "Win rate [95%]", "Verdict")
"""What fits a terminal of 80 columns; the page has the rest."""
_WIDTHS = {"Comparison": len("SFT vs Base"), "Judge": len("reward")}
"""Least widths of the columns whose text is folded."""
_TOLD = ("unjudged", "shut gate", "tracked", "gate", "reward model")
"""Statements that say what the table does not."""
_SAID = ("doubted", "longer")
"""Caveats that the table, a reward model's line or a policy's line says already."""


class Line(NamedTuple):
    """A line below the table."""

    id: tuple[str, ...]
    """What it is about: `("policy", name)`, the id of a statement, or `("caveat", id, about)`."""
    mark: str
    style: str
    text: str


def terminal_report(report: Report) -> RenderableType:
    """The table of comparisons and the lines below it, for a rich console."""
    parts: list[RenderableType] = []
    if rows := comparison_rows(report):
        parts += [_table(f"{report['name']}: held-out comparisons", _HEADER, rows), Text()]
    elif schema.unjudged(report) and (measured := tables.brief_measured_table(report)).rows:
        parts += [_table(f"{report['name']}: measured without a judge", measured.header, measured.rows), Text()]
    else:
        names = Names.of(report)
        own = schema.reward_models(report)  # these have a line below
        parts += [Text(f"{names.label(name)}: {line}") for name, line in tables.stage_lines(report) if name not in own]
    if report["rounds"] is not None:
        shown = rounds.rounds_table(report)
        table = Table(title="Rounds", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for heading in shown.header:
            table.add_column(heading, overflow="fold")
        for cells in shown.rows:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
        parts += [table, Text()]
        if report["rounds"]["problem"]:
            parts.append(Text(f"The rounds are not compared: {report['rounds']['problem']}.", style="yellow"))
    below = Table.grid(padding=(0, 1))
    for line in lines(report):
        below.add_row(Text(line.mark, style=f"bold {line.style}"), Text(line.text))
    return Group(*parts, below)


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table with columns of words left and of numbers right; names are folded where there is no room, not cut."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for heading in header:
        name = heading in ("Comparison", "Judge", "Measure")  # two could begin alike
        left = name or heading == "Verdict"
        justify: Literal["left", "right"] = "left" if left else "right"
        table.add_column(heading, justify=justify, no_wrap=not name, overflow="fold", min_width=_WIDTHS.get(heading))
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


def comparison_rows(report: Report) -> list[tuple[str, ...]]:
    """The comparisons in five columns; what was trained with several seeds over all of them."""
    names = Names.of(report)
    rows: list[tuple[str, ...]] = []
    for row, seeds in _shown_comparisons(report):
        if seeds is None:
            difference = estimate(row["mean_difference"], row["difference_ci"], signed=True)
            wins = percent(row["win_rate"], row["win_rate_ci"])
            rows.append((names.versus(row), row["judge"], difference, wins, shown_verdict(row)))
        else:
            versus = f"{names.versus(seeds)}, {count(seeds['n_seeds'], 'seed')}"
            difference = estimate(seeds["mean"], seeds["ci"], signed=True)
            rows.append((versus, seeds["judge"], difference, percent(seeds["win_rate"]), shown_verdict(seeds)))
    return rows


def _shown_comparisons(report: Report) -> list[tuple[Comparison, SeedSummary | None]]:
    """The comparisons of the table, those of a first seed, with what all seeds show where there are several."""
    over_seeds = {(row["policy"], row["baseline"], row["judge"]): row for row in report["seeds"]}
    return [
        (row, over_seeds.get((row["policy"], kind_of(row["baseline"]), row["judge"])))
        for row in report["comparisons"]
        if row["policy"] == kind_of(row["policy"])
    ]


def lines(report: Report) -> list[Line]:
    """What the table does not show: alarms, a line a policy, the reward models, and what limits the evidence."""
    names = Names.of(report)
    told = [statement for statement in sentences.statements(report) if statement.id[0] in _TOLD]
    beside = [
        Line(statement.id, tables.MARKS[statement.kind], _STYLES[statement.kind], statement.text) for statement in told
    ]
    alarms = [line for line in beside if line.id[0] in ("unjudged", "shut gate", "tracked")]
    policies = [_policy(entry, report, names) for entry in report["policies"] if _shown(entry["policy"])]
    limits = [
        Line(("caveat", caveat.id, caveat.about), "!", "yellow", caveat.text)
        for caveat in caveats(report)
        if caveat.id not in _SAID
    ]
    models = [line for line in beside if line not in alarms]
    return [*alarms, *policies, *models, *_chance(report), *limits]


def _shown(policy: str) -> bool:
    """Whether a policy has a line: the base models and further seeds have none."""
    return not is_base(policy) and policy == kind_of(policy)


def _policy(entry: Summary, report: Report, names: Names) -> Line:
    """How far a policy went, how long its completions are, and what it got worse or better at."""
    policy = entry["policy"]
    facts = []
    if entry["kl"]["mean"] is not None:
        reference = f" to {names.policy(entry['kl_reference'])}" if entry["kl_reference"] else ""
        facts.append(f"KL{reference} {number(entry['kl']['mean'])} nats a reply")
    facts += [
        f"right in {percent(measures['accuracy'])}, confidence {percent(measures['confidence'])}"
        for measures in (report["classification"] or {"policies": []})["policies"]
        if measures["policy"] == policy
    ]
    if entry["length"]["mean"] is not None and not schema.answers_only(report):
        facts.append(f"{number(entry['length']['mean'], 1)} tokens a reply{_before(policy, report, names)}")
    if ("longer", policy) in {(caveat.id, caveat.about) for caveat in caveats(report)}:
        facts.append("which a judge that likes length favours")
    changes = [row for row in sentences.retained_changes(report) if row["policy"] == policy]
    facts += [
        f"got {row['verdict']} on {row['judge']} "
        f"({estimate(row['mean_difference'], row['difference_ci'], signed=True)} "
        f"{sentences.UNITS[row['measure']] or row['measure']})"
        for row in changes
    ]
    worse = any(row["verdict"] == "worse" for row in changes)
    mark, style = (tables.MARKS["worse"], _STYLES["worse"]) if worse else ("·", "default")
    return Line(("policy", policy), mark, style, f"{names.label(policy)}: {', '.join(facts) or 'no reply'}")


def _before(policy: str, report: Report, names: Names) -> str:
    """The length of the completions of the policy that this one started from."""
    parent = schema.parents(report).get(policy)
    for entry in report["policies"]:
        if entry["policy"] == parent and entry["length"]["mean"] is not None:
            return f" ({names.policy(parent)}: {number(entry['length']['mean'], 1)})"
    return ""


def _chance(report: Report) -> list[Line]:
    """Why the table shows no difference where an interval excludes zero, or where there are few prompts."""
    notes = []
    among = [
        (seeds or row)["n_comparisons"] for row, seeds in _shown_comparisons(report) if (seeds or row)["corrected"]
    ]
    if among:
        notes.append(
            Line(
                ("corrected",), "!", "yellow",
                f"Where an interval excludes zero and no difference is shown, it may be chance among "
                f"{count(max(among), 'comparison')}.",
            )
        )  # fmt: skip
    few = [row["n"] for row in report["comparisons"] if row["n"] < MIN_PROMPTS]
    if few:
        text = f"{count(max(few), 'prompt')} with a score on both sides cannot show a difference; {MIN_PROMPTS} can."
        notes.append(Line(("few prompts",), "!", "yellow", text))
    return notes
