"""What the report shows of policies that choose a class or mark a span: measures, flips, confusions, calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rlhf.evaluation.classifiers import Classifier, Flip, FlipReport
from rlhf.evaluation.formatting import count, estimate, number, percent
from rlhf.report import diagrams, schema
from rlhf.report.names import Names, capital
from rlhf.report.schema import Report
from rlhf.report.tables import Table, probability
from rlhf.workflow import BASE, kind_of

_SHOWN = 12
"""Mistakes in the list; report.json has all."""


class Cell(NamedTuple):
    """A number of a grid of confusions."""

    n: int
    share: float
    """Of the rows of the right class, from 0 to 1."""
    right: bool
    """Whether it stands on the diagonal."""


class GridView(NamedTuple):
    """How often a policy took each class for each."""

    policy: str
    labels: list[str]
    rows: list[list[Cell]]

    @property
    def markdown_rows(self) -> list[list[str]]:
        """The numbers behind the name of the class."""
        return [
            [label, *(f"{cell.n:,}" for cell in cells)] for label, cells in zip(self.labels, self.rows, strict=True)
        ]


class FlipView(NamedTuple):
    """The rows that a policy repaired and broke beside what it came from."""

    policy: str
    baseline: str
    text: str
    rows: list[tuple[str, list[Flip]]]
    """What became of them, and the first of them; empty groups are left out."""


class ClassesView(NamedTuple):
    """The section's parts, of the first seed of each policy."""

    calibration: list[diagrams.Diagram]
    flips: list[FlipView]
    grids: list[GridView]
    confusions: Table
    """The most frequent mistakes, where there is no grid."""
    classes: list[tuple[str, Table]]
    """Policy and its measures of each class."""


def view(report: Report) -> ClassesView | None:
    """The section about answers; None where no policy chooses one."""
    if report["classification"] is None:
        return None
    names, policies = Names.of(report), _first_seeds(report)
    return ClassesView(
        calibration=[_calibration(entry, names) for entry in policies if entry["calibration"]],
        flips=[_flip_view(entry, names) for entry in own_flips(report)],
        grids=list(_grids(policies)),
        confusions=confusion_table([entry for entry in policies if entry["grid"] is None], names),
        classes=[(entry["policy"], class_table(entry)) for entry in policies if entry["classes"]],
    )


def classifier_table(report: Report) -> Table:
    """How right and how sure each policy is."""
    names = Names.of(report)
    entries = (report["classification"] or {"policies": []})["policies"]
    macro = any(entry["macro_f1"] is not None for entry in entries)
    header = ("Policy", "Right [95%]", *(["Macro F1"] if macro else []), "Confidence", "Calibration error",
              "Brier score [95%]", "n")  # fmt: skip
    rows = [
        (
            names.label(entry["policy"]),
            percent(entry["accuracy"], entry["accuracy_ci"]),
            *([number(entry["macro_f1"], 3)] if macro else []),
            percent(entry["confidence"]),
            number(entry["ece"], 3),
            estimate(entry["brier"], entry["brier_ci"]),
            f"{entry['n']:,}",
        )
        for entry in entries
    ]
    return Table(header, rows)


def own_flips(report: Report) -> list[FlipReport]:
    """The rows that flipped between each policy and what it came from; of several seeds the first."""
    parents = schema.parents(report)
    return [
        entry
        for entry in (report["classification"] or {"flips": []})["flips"]
        if entry["policy"] == kind_of(entry["policy"]) and entry["baseline"] == parents.get(entry["policy"], BASE)
    ]


def flip_text(entry: FlipReport, names: Names) -> str:
    """How many rows a policy repaired and broke, in a sentence."""
    policy, baseline = names.policy(entry["policy"]), names.policy(entry["baseline"])
    return capital(
        f"{policy} is right in {count(entry['repaired'], 'row')} of {entry['n']:,} in which {baseline} is wrong, and "
        f"wrong in {entry['broken']:,} in which {baseline} is right (McNemar's exact test: p "
        f"{probability(entry['p_value'])})."
    )


def confusion_table(policies: Sequence[Classifier], names: Names) -> Table:
    """The most frequent mistakes of policies side by side; those of the last policy stand first."""
    counts = [
        {(mistake["right"], mistake["chosen"]): mistake["n"] for mistake in entry["confusions"]} for entry in policies
    ]
    mistakes = {mistake for of_policy in counts for mistake in of_policy}
    ordered = sorted(
        mistakes, key=lambda mistake: ([-of_policy.get(mistake, 0) for of_policy in counts[::-1]], mistake)
    )
    sizes = {measures["label"]: measures["rows"] for entry in policies for measures in entry["classes"]}
    rows = [
        (
            mistake[0],
            mistake[1] or "none",
            *(f"{of_policy.get(mistake, 0):,}" for of_policy in counts),
            f"{sizes.get(mistake[0], 0):,}",
        )
        for mistake in ordered[:_SHOWN]
    ]
    return Table(("Class", "Taken for", *(names.label(entry["policy"]) for entry in policies), "Rows"), rows)


def class_table(entry: Classifier) -> Table:
    """How well a policy tells each class, the class with the lowest F1 first."""
    ordered = sorted(entry["classes"], key=lambda measures: (measures["f1"] is None, measures["f1"]))
    rows = [
        (
            measures["label"],
            number(measures["f1"], 2),
            percent(measures["precision"]),
            percent(measures["recall"]),
            f"{measures['rows']:,}",
            f"{measures['chosen']:,}",
        )
        for measures in ordered
    ]
    return Table(("Class", "F1", "Precision", "Recall", "Rows", "Chosen"), rows)


def _first_seeds(report: Report) -> list[Classifier]:
    return [
        entry
        for entry in (report["classification"] or {"policies": []})["policies"]
        if entry["policy"] == kind_of(entry["policy"])
    ]


def _calibration(entry: Classifier, names: Names) -> diagrams.Diagram:
    return diagrams.reliability(
        entry["calibration"],
        least=0.0,
        title=f"Calibration: {names.label(entry['policy'])}",
        x_label="confidence in the answer",
        y_label="answers right [95%]",
        counted="answers",
    )


def _flip_view(entry: FlipReport, names: Names) -> FlipView:
    groups = [("Wrong before, right now", entry["repaired_rows"]), ("Right before, wrong now", entry["broken_rows"])]
    return FlipView(
        entry["policy"], entry["baseline"], flip_text(entry, names), [(what, rows) for what, rows in groups if rows]
    )


def _grids(policies: list[Classifier]) -> Iterator[GridView]:
    for entry in policies:
        if entry["grid"] is not None:
            rows = [
                [Cell(n, n / max(1, sum(counts)), row == column) for column, n in enumerate(counts)]
                for row, counts in enumerate(entry["grid"]["counts"])
            ]
            yield GridView(entry["policy"], entry["grid"]["labels"], rows)
