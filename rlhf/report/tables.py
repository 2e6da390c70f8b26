"""The tables of a report, as text a cell: on the page and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rlhf.evaluation.compare import GroupComparison
from rlhf.evaluation.formatting import estimate, number, percent
from rlhf.evaluation.gate import BATCH_TOLERANCE, GateModel
from rlhf.report import schema, sentences, unjudged
from rlhf.report.diagrams import root_kl
from rlhf.report.names import Names, shown_verdict
from rlhf.report.schema import Report, StageReport
from rlhf.workflow import BASE

MARKS: dict[str, str] = {
    "better": "▲",
    "worse": "▼",
    "no difference": "=",
    "doubtful": "?",
    "alarm": "!",
    "measured": "·",
}
"""Before a statement and in a column of verdicts."""

COMPARISON_HEADER = (
    "Comparison", "Judge", "Scores", "Difference [95%]", "Win rate [95%]", "At equal length [95%]", "p", "KL", "Tokens",
    "n", "Verdict",
)  # fmt: skip
_LEFT = {
    "Comparison", "Judge", "Verdict", "Set", "Stage", "Group", "Measure", "Policy", "Reward model", "Gate", "",
    "What changes", "Dropped", "Class", "Taken for", "Input", "Round", "Unit",
}  # fmt: skip
"""Columns of words; those of numbers are set flush right."""


class Table(NamedTuple):
    """Headings and cells of one table; without rows it is not shown. A last column named Verdict has marks."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """The table in Markdown; empty where it has no rows."""
        right = ",".join(heading for heading in self.header if heading not in _LEFT)
        return markdown_table(self.header, self.rows, right) if self.rows else ""


def comparison_table(report: Report, columns: Sequence[str] = COMPARISON_HEADER) -> Table:
    """The comparisons over all prompts; of `COMPARISON_HEADER` some columns."""
    names = Names.of(report)
    rows = [
        (
            names.versus(row),
            row["judge"],
            "–" if row["policy_mean"] is None else f"{number(row['policy_mean'])} vs {number(row['baseline_mean'])}",
            estimate(row["mean_difference"], row["difference_ci"], signed=True),
            percent(row["win_rate"], row["win_rate_ci"]),
            percent(row["win_rate_length_controlled"], row["win_rate_length_controlled_ci"]),
            probability(row["p_adjusted"]),
            number(row["kl"]),
            number(row["mean_length"]),
            f"{row['n']:,}",
            shown_verdict(row),
        )
        for row in report["comparisons"]
    ]
    places = [COMPARISON_HEADER.index(heading) for heading in columns]
    return Table(tuple(columns), [tuple(cells[place] for place in places) for cells in rows])


def told_columns(report: Report) -> tuple[str, ...]:
    """The columns of `COMPARISON_HEADER` that say something: none of lengths where no policy writes text."""
    of_text = ("At equal length [95%]", "Tokens") if schema.answers_only(report) else ()
    return tuple(heading for heading in COMPARISON_HEADER if heading not in of_text)


def page_table(report: Report) -> Table:
    """The comparisons as the page shows them: without what its figures show, which leave out further seeds."""
    differences = ("Difference [95%]",) if report["seeds"] else ()
    return comparison_table(report, ("Comparison", "Judge", *differences, "p", "n", "Verdict"))


def stage_lines(report: Report) -> list[tuple[str, str]]:
    """Held-out metrics of each stage that has some, as one line."""
    facts = [(name, sentences.stage_facts(stage)) for name, stage in report["stages"].items()]
    return [(name, "; ".join(lines)) for name, lines in facts if lines]


def probability(p: float | None) -> str:
    """A p-value, with a third digit where it decides; `<0.001` and not 0."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def seed_table(report: Report) -> Table:
    """What was trained with several seeds, over all of them."""
    names = Names.of(report)
    rows = [
        (
            names.versus(row),
            row["judge"],
            f"{row['n_seeds']}",
            estimate(row["mean"], row["ci"], signed=True),
            f"{number(row['min'], 2, signed=True)} to {number(row['max'], 2, signed=True)}",
            number(row["std"]),
            percent(row["win_rate"]),
            probability(row["p_adjusted"]),
            shown_verdict(row),
        )
        for row in report["seeds"]
    ]
    header = ("Comparison", "Judge", "Seeds", "Difference [95%]", "Single seeds", "SD of seeds", "Win rate", "p",
              "Verdict")  # fmt: skip
    return Table(header, rows)


def own_groups(report: Report) -> list[GroupComparison]:
    """The comparisons within groups that are shown: against the parent."""
    parents = schema.parents(report)
    return [row for row in report["groups"] if row["baseline"] == parents.get(row["policy"], BASE)]


def group_table(report: Report) -> Table:
    """Within each group of prompts, policies against what they came from."""
    names = Names.of(report)
    rows = [
        (
            row["group"],
            names.versus(row),
            row["judge"],
            estimate(row["mean_difference"], row["difference_ci"], signed=True),
            percent(row["win_rate"], row["win_rate_ci"]),
            probability(row["p_adjusted"]),
            f"{row['n']:,}",
            shown_verdict(row),
        )
        for row in own_groups(report)
    ]
    return Table(("Group", "Comparison", "Judge", "Difference [95%]", "Win rate [95%]", "p", "n", "Verdict"), rows)


def retained_table(report: Report) -> Table:
    """The sets of `evaluate.retain`: each policy against what it came from and the base."""
    names = Names.of(report)
    rows = []
    for row in report["retained"]:
        unit = sentences.UNITS[row["measure"]]
        rows.append(
            (
                row["judge"],
                names.versus(row),
                row["measure"] + (f", {unit}" if unit else ""),
                number(row["baseline_mean"]),
                number(row["policy_mean"]),
                estimate(row["mean_difference"], row["difference_ci"], signed=True),
                probability(row["p_adjusted"]),
                f"{row['n']:,}",
                row["verdict"],
            )
        )
    return Table(("Set", "Comparison", "Measure", "Before", "After", "Change [95%]", "p", "n", "Verdict"), rows)


def robustness_table(report: Report) -> Table:
    """What each perturbation costs each policy, and the policy on it against what it came from."""
    names, parents = Names.of(report), schema.parents(report)
    measured = report["robustness"] or {"changes": [], "comparisons": []}
    against = {
        (row["policy"], row["judge"], row["perturbation"]): row
        for row in measured["comparisons"]
        if row["baseline"] == parents.get(row["policy"], BASE)
    }
    rows = []
    for change in measured["changes"]:
        row = against.get((change["policy"], change["judge"], change["perturbation"]))
        rows.append(
            (
                names.label(change["policy"]),
                change["judge"],
                sentences.shown_name(change["perturbation"]),
                number(change["clean_mean"]),
                number(change["perturbed_mean"]),
                estimate(change["mean_difference"], change["difference_ci"], signed=True),
                f"{change['n']:,}",
                names.label(row["baseline"]) if row else "–",
                estimate(row["mean_difference"], row["difference_ci"], signed=True) if row else "–",
                row["verdict"] if row else "–",
            )
        )
    header = ("Policy", "Judge", "Input", "As it is", "Perturbed", "Change [95%]", "n", "Beside",
              "Difference [95%]", "Verdict")  # fmt: skip
    return Table(header, rows)


def measured_table(report: Report) -> Table:
    """What was measured without a judge, of every policy beside what it was trained from and beside the base."""
    names = Names.of(report)
    return Table(unjudged.COLUMNS, [unjudged.cells(row, names) for row in unjudged.shown_rows(report)])


def brief_measured_table(report: Report) -> Table:
    """The part of it that fits a terminal."""
    names, places = Names.of(report), [unjudged.COLUMNS.index(heading) for heading in unjudged.BRIEF]
    rows = [unjudged.cells(row, names) for row in unjudged.brief_rows(report)]
    return Table(unjudged.BRIEF, [tuple(row[place] for place in places) for row in rows])


def gate_table(report: Report) -> Table:
    """The reward models beside the length baseline."""
    header = ("Reward model", "Ranked right [95%]", "Length alone [95%]", "Chance", "Prefers the longer",
              "Calibration error", "Pairs", "Gate")  # fmt: skip
    rows = [
        (
            name,
            percent(model["accuracy"], model["accuracy_ci"]),
            percent(model["length_baseline"], model["length_baseline_ci"]),
            "50%",
            percent(model["prefers_longer"]),
            percent(model["ece"]),
            f"{model['n']:,}",
            "passed" if model["passed"] else "failed",
        )
        for name, model in schema.gated_models(report).items()
    ]
    return Table(header, rows)


def invariance_table(model: GateModel) -> Table:
    """How far a reward model's scores move with what should not matter, in their standard deviations."""
    moved = model["invariance"]
    rows = [("padding and the other rows of a batch, largest", _spread(moved["batch"]), _spread(BATCH_TOLERANCE))]
    if moved["eos"] is not None:
        rows.append(("a second end token, mean", _spread(moved["eos"]), "–"))
    return Table(("What changes", "Score moves by, SD", "At most"), rows)


def tracked_table(stage: StageReport) -> Table:
    """The checkpoints of a stage: how far they went, their score by the checkpoint judge, and what was maximised."""
    rows = [
        (
            f"{checkpoint['step']:,}",
            number(checkpoint["kl"], 2),
            number(root_kl(checkpoint), 2),
            estimate(checkpoint["checkpoint_judge"], checkpoint["checkpoint_judge_ci"]),
            estimate(checkpoint["proxy"], checkpoint["proxy_ci"]),
            number(checkpoint["length"], 1),
            "kept" if checkpoint["step"] == stage.get("selected_step") else "start" if checkpoint["step"] == 0 else "",
        )
        for checkpoint in stage.get("tracked", [])
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
    return comparison_table(report, told_columns(report)).markdown()


def policy_table_md(report: Report) -> str:
    """Each policy's mean scores, length, endings and KL as a Markdown table; empty where there are none."""
    names = Names.of(report)
    judges = list(report["policies"][0]["scores"]) if report["policies"] else []
    judges = [judge for judge in judges if judge not in report["comparing"]]  # these give no scores
    writes = not schema.answers_only(report)
    header = ["Policy", *(f"{judge} [95%]" for judge in judges), *(["Tokens", "Ended"] if writes else []), "KL (nats)"]
    rows = [
        [
            names.label(entry["policy"]),
            *(estimate(entry["scores"][judge]["mean"], entry["scores"][judge]["ci"]) for judge in judges),
            *([estimate(entry["length"]["mean"], entry["length"]["ci"], digits=1)] if writes else []),
            *([percent(entry["finished"]["mean"])] if writes else []),
            number(entry["kl"]["mean"])
            + (f" to {names.label(entry['kl_reference'])}" if entry["kl_reference"] else ""),
        ]
        for entry in report["policies"]
    ]
    return markdown_table(header, rows, right=",".join(header[1:])) if rows else ""


def finding_lines(report: Report) -> list[str]:
    """What misleads in the data of each stage, a line each, with the stages that read it."""
    names = Names.of(report)
    stages: dict[str, list[str]] = {}
    for name, metrics in report["stages"].items():
        for line in metrics.get("findings", {}).get("lines", []):
            stages.setdefault(f"{metrics['findings']['set']}: {_md_cell(line)}", []).append(names.label(name))
    return [f"{line} ({', '.join(names)})" for line, names in stages.items()]


def ledger_table_md(report: Report) -> str:
    """Where the rows of each stage's sets went, as a Markdown table; empty where there is no ledger."""
    names = Names.of(report)
    header = ("Stage", "Set", "Read", "Dropped", "Evaluated", "Trained", "Truncated", "EOS lost")
    rows = []
    for name, metrics in report["stages"].items():
        for kind, entry in metrics.get("rows", {}).items():
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in entry.get("dropped", {}).items() if n)
            fields = ("evaluated", "trained", "truncated", "eos_lost")
            counts = (f"{entry.get(field, 0):,}" for field in fields)
            rows.append((names.label(name), kind, f"{entry.get('read', 0):,}", reasons or "0", *counts))
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
