"""In what two runs differ: settings, data, packages and results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from rlhf.artifacts.manifest import Manifest, read_manifests
from rlhf.errors import UserError
from rlhf.evaluation.across import Sampled, joined, problem, shared_judges
from rlhf.evaluation.compare import Comparison, compare, correct
from rlhf.history.settings import Difference, data, differing, packages, settings
from rlhf.pipeline.runs import find_run
from rlhf.report.build import read_comparisons, read_jsonl
from rlhf.report.names import shown_verdict
from rlhf.report.rounds import read_sampled
from rlhf.workflow import BASE, in_order


class Metric(TypedDict):
    """A number that a stage of both runs measured."""

    stage: str
    """The stage."""
    metric: str
    """Name of the number, as in stage.json."""
    first: float
    """In the first run."""
    second: float
    """In the second run."""
    interval: list[float] | None
    """95% interval of second - first, where both have one."""


class Outcome(TypedDict):
    """How a comparison came out in one run."""

    mean_difference: float | None
    """As in `Comparison`."""
    difference_ci: list[float] | None
    """Its 95% interval."""
    verdict: str
    """As the report shows it."""


class Compared(TypedDict):
    """A comparison within each run, such as DPO with SFT; None where a run has no such comparison."""

    policy: str
    """The policy."""
    baseline: str
    """The policy that it is compared with."""
    judge: str
    """Who or what scored the completions."""
    first: Outcome | None
    """How it came out in the first run."""
    second: Outcome | None
    """How it came out in the second run."""


class RunDifference(TypedDict):
    """What `rlhf diff --json` prints."""

    first: str
    """Folder of the first run."""
    second: str
    """Folder of the second run."""
    only_first: list[str]
    """Stages that the first run alone has finished."""
    only_second: list[str]
    """Stages that the second run alone has finished."""
    settings: list[Difference]
    """By their keys in the YAML, of the stages that both have."""
    data: list[Difference]
    """Fingerprints of the data and of the base model, and counts of rows."""
    packages: list[Difference]
    """Versions, and the commit of the project."""
    metrics: list[Metric]
    """The numbers that differ."""
    comparisons: list[Compared]
    """Those of both reports, side by side."""
    policies: list[Comparison]
    """Each policy of the second run with that of the first, on the same prompts by the same judges; corrected
    together."""
    problems: dict[str, str]
    """Policy -> why the two runs' are not compared."""
    notes: list[str]
    """What could not be read."""


def run_difference(first: str, second: str) -> RunDifference:
    """In what two runs differ.

    Args:
        first: A run's folder, name or YAML.
        second: Another's.

    Raises:
        UserError: One of them is no run, names a stage, has no finished stage, or is damaged.
    """
    folders = [_folder(spec) for spec in (first, second)]
    names = [first, second] if first != second else [f"{first} (first)", f"{second} (second)"]
    runs = [_manifests(folder) for folder in folders]
    comparisons, notes = _comparisons(folders)
    policies, problems = _policies(folders, runs, names)
    return RunDifference(
        first=str(folders[0]),
        second=str(folders[1]),
        only_first=[name for name in runs[0] if name not in runs[1]],
        only_second=[name for name in runs[1] if name not in runs[0]],
        settings=settings(*runs),
        data=differing(*(data(run, folder) for run, folder in zip(runs, folders, strict=True))),
        packages=differing(*map(packages, runs)),
        metrics=_metrics(*runs),
        comparisons=comparisons,
        policies=policies,
        problems=problems,
        notes=notes,
    )


def _folder(spec: str) -> Path:
    folder, stage = find_run(spec)
    if stage is not None:
        raise UserError(f"{spec}: names a stage; whole runs are compared")
    return folder


def _manifests(folder: Path) -> dict[str, Manifest]:
    manifests = read_manifests(folder)
    if not manifests:
        raise UserError(f"{folder}: no finished stage to compare")
    known = in_order(manifests)
    return {name: manifests[name] for name in [*known, *(name for name in manifests if name not in known)]}


def _metrics(first: Mapping[str, Manifest], second: Mapping[str, Manifest]) -> list[Metric]:
    """The numbers that differ, of stages that both runs have."""
    metrics = []
    for name in [name for name in first if name in second]:
        left, right = (
            {**run[name]["metrics"], **{key: run[name].get(key) for key in ("wall_time_s", "peak_memory_mb")}}
            for run in (first, second)
        )
        for key in [key for key in left if key in right and left[key] != right[key]]:
            if _is_number(left[key]) and _is_number(right[key]):
                ends, others = left.get(f"{key}_ci"), right.get(f"{key}_ci")
                interval = difference_interval(left[key], ends, right[key], others) if ends and others else None
                metrics.append(Metric(stage=name, metric=key, first=left[key], second=right[key], interval=interval))
    return metrics


def difference_interval(
    first: float, first_ci: Sequence[float], second: float, second_ci: Sequence[float]
) -> list[float]:
    """The 95% interval of second - first, from the intervals of two estimates that are independent.

        low  = d - sqrt((second - second_low)² + (first_high - first)²),   d = second - first
        high = d + sqrt((second_high - second)² + (first - first_low)²)

    Where both were measured on the same rows it is wider than need be. Source: Zou and Donner 2008, Construction of
    confidence limits about effect measures.
    """
    difference = second - first
    low = difference - math.hypot(second - second_ci[0], first_ci[1] - first)
    high = difference + math.hypot(second_ci[1] - second, first - first_ci[0])
    return [low, high]


def _comparisons(folders: Sequence[Path]) -> tuple[list[Compared], list[str]]:
    """What each run's report says of its own policies, and what could not be read of it."""
    sides: list[dict[tuple[str, str, str], Outcome]] = []
    notes = []
    for folder in folders:
        rows: Sequence[Comparison] = []
        if (folder / "report.json").is_file():
            rows = read_comparisons(folder)
        else:
            notes.append(f"{folder}: has no report yet; rlhf report {folder} writes it")
        sides.append({(row["policy"], row["baseline"], row["judge"]): _outcome(row) for row in rows})
    keys = dict.fromkeys([*sides[0], *sides[1]])
    return [
        Compared(policy=key[0], baseline=key[1], judge=key[2], first=sides[0].get(key), second=sides[1].get(key))
        for key in keys
    ], notes  # fmt: skip


def _outcome(row: Comparison) -> Outcome:
    return Outcome(
        mean_difference=row["mean_difference"], difference_ci=row["difference_ci"], verdict=shown_verdict(row)
    )


def _policies(
    folders: Sequence[Path], runs: Sequence[Mapping[str, Manifest]], names: Sequence[str]
) -> tuple[list[Comparison], dict[str, str]]:
    """Each policy that both runs have compared, the second run's with the first's."""
    shared = [name for name in runs[0] if name in runs[1] and runs[0][name].get("leaves") == "policy"]
    sampled = [
        read_sampled(folder, run, name, BASE, read_jsonl, own_judges=True)
        for folder, run, name in zip(folders, runs, names, strict=True)
    ]
    rows: list[Comparison] = []
    problems = {}
    for policy in shared:
        pair = [Sampled(**{**vars(each), "policy": policy}) for each in sampled]
        if (why := problem(pair)) is not None:
            problems[policy] = why
            continue
        both = joined(pair)
        rows += [
            Comparison(**{**compare(both, names[1], names[0], judge), "policy": policy, "baseline": policy})
            for judge in shared_judges(pair)
        ]  # fmt: skip
    return correct(rows), problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
