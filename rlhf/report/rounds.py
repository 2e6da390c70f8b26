"""The rounds of a run in its report: what earlier ones left is read from their folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from rlhf.artifacts.manifest import Manifest, check_records, read_manifests
from rlhf.artifacts.rounds import read_round, round_dir
from rlhf.evaluation.across import Sampled
from rlhf.evaluation.compare import Comparison
from rlhf.evaluation.formatting import estimate
from rlhf.evaluation.rounds import Left, Rounds, compare_rounds
from rlhf.evaluation.samples import Row
from rlhf.report import charts
from rlhf.report.charts import Estimate
from rlhf.report.names import shown_verdict
from rlhf.report.schema import Report
from rlhf.report.tables import Table


def rounds_of(run_dir: Path, read_rows: Callable[[Path], list[dict[str, Any]]]) -> Rounds | None:
    """The rounds up to the one in a folder; None of a first round.

    Args:
        run_dir: The round's folder.
        read_rows: Reads a JSONL file.

    Raises:
        UserError: A file of a round is damaged.
    """
    record = read_round(run_dir)
    if record is None:
        return None
    left = []
    for number in range(1, record["round"] + 1):
        folder = run_dir if number == record["round"] else round_dir(run_dir.resolve().parent, number)
        own, after = read_round(folder), read_round(round_dir(run_dir.resolve().parent, number + 1))
        policy = own["leaves"] if own is not None and number == record["round"] else after["start"] if after else ""
        manifests = read_manifests(folder) if folder.is_dir() else {}
        sampled = read_sampled(folder, manifests, f"round {number}", policy, read_rows)
        label = manifests[policy].get("label", policy) if policy in manifests else policy
        votes = own["votes"] if own is not None else 0
        left.append(Left(**vars(sampled), round=number, label=label, votes=votes))
    return compare_rounds(left)


def read_sampled(
    folder: Path,
    manifests: Mapping[str, Manifest],
    name: str,
    policy: str,
    read_rows: Callable[[Path], list[dict[str, Any]]],
    own_judges: bool = False,
) -> Sampled:
    """What a policy wrote when it was compared with the others of its run.

    Args:
        folder: The run's folder.
        manifests: Of its finished stages.
        name: What the policy is to be called.
        policy: Its stage.
        read_rows: Reads a JSONL file.
        own_judges: Whether the run's own reward models count as judges, each identified by its artefact.

    Raises:
        UserError: A file of the comparison is damaged.
    """
    compared = next((stage for stage, each in manifests.items() if each.get("leaves") == "comparison"), None)
    if compared is None:
        return Sampled(name, policy, [], {}, {})
    manifest = manifests[compared]
    check_records(folder / compared, manifest)
    rows = cast(list[Row], read_rows(folder / compared / "samples.jsonl"))
    judges = _judges(manifest, own_judges)
    return Sampled(name, policy, rows, manifest["identity"].get("evaluate") or {}, judges)


def _judges(manifest: Manifest, own: bool) -> Mapping[str, Any]:
    """What identifies the judges that score; those that compare see no two runs side by side."""
    metrics, parents = manifest["metrics"], manifest["parents"]
    scoring = [name for name in metrics["judges"] if name not in (metrics.get("comparing") or {})]
    known = {**(parents if own else {}), **(manifest["identity"].get("rewards") or {})}
    return {name: known[name] for name in scoring if name in known}


def rounds_table(report: Report) -> Table:
    """The policies that rounds left, a line for each and each judge; the verdict is on the round before."""
    header = ("Round", "Policy", "Votes cast", "Judge", "Score [95%]", "Difference [95%]", "To round 1 [95%]",
              "Verdict")  # fmt: skip
    rounds = report["rounds"]
    if rounds is None:
        return Table(header, [])
    found = {(row["policy"], row["baseline"], row["judge"]): row for row in rounds["comparisons"]}
    rows = []
    for each in rounds["rounds"]:
        for judge in rounds["judges"] or ["–"]:
            name, before = f"round {each['round']}", f"round {each['round'] - 1}"
            last, first = found.get((name, before, judge)), found.get((name, "round 1", judge))
            score = each["scores"].get(judge)
            rows.append(
                (
                    str(each["round"]), each["label"], f"{each['votes']:,}" if each["round"] > 1 else "–", judge,
                    estimate(score["mean"], score["ci"]) if score else "–", _difference(last), _difference(first),
                    shown_verdict(last) if last else "–",
                )
            )  # fmt: skip
    if len(rounds["rounds"]) > 2:
        return Table(header, rows)
    place = header.index("To round 1 [95%]")  # which is the round before
    return Table(header[:place] + header[place + 1 :], [cells[:place] + cells[place + 1 :] for cells in rows])


def _difference(row: Comparison | None) -> str:
    return estimate(row["mean_difference"], row["difference_ci"], signed=True) if row else "–"


def round_panels(report: Report) -> list[charts.StripPanel]:
    """The mean score of each round's policy, a panel a judge."""
    rounds = report["rounds"]
    if rounds is None:
        return []
    panels = [
        charts.strip_panel(
            judge,
            "mean score",
            [
                Estimate(
                    f"Round {each['round']}: {each['label']}", *_mean(each["scores"][judge]), f"p{each['round'] % 6}"
                )
                for each in rounds["rounds"]
            ],
            estimate,
        )
        for judge in rounds["judges"]
    ]
    return [panel for panel in panels if panel]


def _mean(quantity: Any) -> tuple[float | None, list[float] | None]:
    return quantity["mean"], quantity["ci"]
