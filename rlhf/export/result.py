"""What an export measured, the contents of `export.json`, and the same as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

from rlhf.evaluation.compare import Comparison
from rlhf.evaluation.formatting import estimate, number, percent
from rlhf.evaluation.regressions import Regression
from rlhf.report.names import shown_verdict
from rlhf.report.tables import Table

FILE = "export.json"
"""The file of an exported folder that holds an `Exported`."""


class Rate(TypedDict):
    """How fast a model answers: the median of several runs, the smallest and the largest."""

    unit: str
    """What is counted, such as `tokens a second`."""
    median: float
    """Of the runs, in that unit."""
    least: float
    """The slowest run."""
    most: float
    """The fastest run."""


class Probe(TypedDict):
    """The stage's probe: outputs for a few sequences, nats a sequence or logits."""

    recorded: list[float]
    """As recorded when the stage was trained."""
    written: list[float]
    """Of the model in memory that was written; it differs from what was recorded where it was pruned."""
    exported: list[float]
    """Of the exported folder, loaded again."""
    tolerance: str
    """How far the last two may lie apart, by what rounding (`models.probe`)."""


class Pruned(TypedDict):
    """What was set to zero."""

    how: str
    """In words."""
    method: str
    """`magnitude` or `wanda`."""
    sparsity: float
    """Share of each row."""
    rows: int | None
    """Calibration rows; null for a method that takes none."""
    layers: int
    """Linear layers."""
    zeros: float
    """Share of zeros in them."""
    zeros_of_all: float
    """Share of zeros of all weights."""


class PairsExport(TypedDict):
    """A reward model on held-out pairs, before and after."""

    n: int
    """Held-out pairs."""
    accuracy: float
    """Share of them that the stage's model ranks right, ties half."""
    accuracy_ci: list[float]
    """Its 95% interval; pairs of one prompt count together."""
    exported_accuracy: float
    """The same of the exported model."""
    exported_accuracy_ci: list[float]
    """Its 95% interval."""
    difference: float
    """exported_accuracy - accuracy."""
    difference_ci: list[float] | None
    """Its 95% interval, over prompts; null for fewer than two."""
    verdict: str
    """`better`, `worse` or `no difference`: what the interval shows."""


class Exported(TypedDict):
    """The contents of export.json; null where something was not measured."""

    run: str
    """Name of the run."""
    stage: str
    """The stage that was exported."""
    format: str
    """As `--format` names it."""
    pruning: Pruned | None
    """Null where nothing was pruned."""
    files: dict[str, int]
    """Bytes of each file of weights."""
    bytes: int
    """All of them."""
    original_bytes: int
    """Whole weights of the stage, unpruned and unquantised."""
    notes: list[str]
    """What stayed as it was, what could not be checked."""
    probe: Probe | None
    """Null where training recorded none."""
    original_rate: Rate | None
    """How fast the stage's model answers; null where that was not measured."""
    rate: Rate | None
    """How fast the exported model answers; null where that was not measured."""
    comparisons: list[Comparison]
    """The exported policy against the stage's, by every judge of the run that scores replies."""
    retained: list[Regression]
    """The same by the likelihood of held-out replies."""
    kl_per_token: float | None
    """KL of the exported policy to the stage's, nats a token of its own replies."""
    pairs: PairsExport | None
    """Of a reward model."""
    not_evaluated: str | None
    """Why it was not compared."""
    versions: dict[str, str]
    """Of Python and the libraries that made it."""


def table(result: Exported) -> Table:
    """The measurements, a line each: before, after, and what the difference shows."""
    header = ("", result["stage"], "exported", "Difference [95%]", "Verdict")
    return Table(header, [tuple(row) for row in _rows(result)])


def _rows(result: Exported) -> Iterator[Sequence[str]]:
    before, after = result["original_bytes"], result["bytes"]
    yield ("Weights, MB", number(before / 1e6, 2), number(after / 1e6, 2), f"{after / before:.0%} of the size", "")
    if (was := result["original_rate"]) and (now := result["rate"]):
        speeds = [_range(rate) for rate in (was, now)]
        yield (was["unit"].capitalize(), *speeds, f"{now['median'] / was['median']:.2f} times as fast", "")
    if probe := result["probe"]:
        worst = max(zip(probe["recorded"], probe["exported"], strict=True), key=lambda pair: abs(pair[1] - pair[0]))
        yield (
            "Probe, its largest change",
            *(number(each) for each in worst),
            number(worst[1] - worst[0], signed=True),
            "",
        )
    if result["kl_per_token"] is not None:
        yield ("KL, nats a token", "–", number(result["kl_per_token"]), "", "")
    for likelihood in result["retained"]:
        yield ("Log-likelihood of held-out replies, nats a token", *_compared(likelihood))
    for row in result["comparisons"]:
        yield (f"Score by {row['judge']}", *_compared(row))
    if pairs := result["pairs"]:
        yield (
            "Accuracy on held-out pairs", percent(pairs["accuracy"], pairs["accuracy_ci"]),
            percent(pairs["exported_accuracy"], pairs["exported_accuracy_ci"]),
            estimate(pairs["difference"], pairs["difference_ci"], signed=True), pairs["verdict"],
        )  # fmt: skip


def _range(rate: Rate) -> str:
    return f"{number(rate['median'], 0)} ({number(rate['least'], 0)} to {number(rate['most'], 0)})"


def _compared(row: Comparison) -> tuple[str, str, str, str]:
    difference = estimate(row["mean_difference"], row["difference_ci"], signed=True)
    return number(row["baseline_mean"]), number(row["policy_mean"]), difference, shown_verdict(row)


def section(result: Exported) -> str:
    """What a README says of it, in Markdown."""
    sentences = "\n".join(f"- {line}" for line in notes(result))
    return f"## What the export changed\n\n{table(result).markdown()}\n\n{sentences}".rstrip()


def notes(result: Exported) -> list[str]:
    """What the table does not say, a sentence each."""
    lines = list(result["notes"])
    if pruned := result["pruning"]:
        lines.append(
            f"Pruned by {pruned['how']}: {pruned['zeros']:.1%} zeros in {pruned['layers']} linear layers, "
            f"{pruned['zeros_of_all']:.1%} of all weights."
            + (f" Input norms come from {pruned['rows']} training rows." if pruned["rows"] else "")
        )
    if result["not_evaluated"]:
        lines.append(f"Not compared with the stage: {result['not_evaluated']}.")
    return lines
