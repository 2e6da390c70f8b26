"""A run's folder -> report.json, report.md and report.html.

`build_report` gathers everything there is into one JSON value; the pages are rendered from that value alone.
"""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rlhf
from rlhf.artifacts.manifest import read_manifests
from rlhf.data.findings import FINDINGS_FILE, Findings
from rlhf.errors import UserError
from rlhf.evaluation.compare import compare_groups, compare_policies, summarise
from rlhf.evaluation.gate_verdict import unproven
from rlhf.evaluation.regressions import RETAINED, compare_retained
from rlhf.evaluation.seeds import over_seeds
from rlhf.report import html
from rlhf.workflow import kind_of, stages

SHOWN = 12
"""Prompts whose replies the page shows with every sample."""
FOLDED = 48
"""Further prompts, with one sample each, that it shows folded away."""
_CURVE_POINTS = 300
_DROPPED_SHOWN = 10
_SECRET_KEYS = ("hub_token", "api_key", "password", "secret")
_PROVENANCE = (
    "artifact", "hash", "parents", "data", "seed", "versions", "git_sha", "tokenizer", "max_length", "lineage",
    "wall_time_s", "peak_memory_mb", "config",
)  # fmt: skip


def build_report(run_dir: str | Path) -> dict[str, Any]:
    """Gather what a run's stages left behind.

    Works with whatever stages are finished: without `evaluate` there are no comparisons.

    Args:
        run_dir: A run's folder, `runs/NAME`.

    Returns:
        The contents of report.json: `name`, `created`, `version`, `stages` (metrics of each, `rows` from its ledger,
        `findings` from its data), `comparisons` (`compare.Comparison`), `seeds` (`seeds.SeedSummary`, of what was
        trained with several), `groups` (`compare.GroupComparison`), `retained` (`lost.Lost`), `comparing` (of each
        judge of pairs its `endpoint.JudgeReport`), `policies` (`compare.Summary`), `evaluation` (how replies were
        sampled, or null), `samples`, `curves` ({stage: {metric: [[step, value], …]}}) and `provenance` (of each stage).

    Raises:
        UserError: No such folder, no finished stage in it, or a file that cannot be read.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run")
    manifests = read_manifests(run_dir)
    records = {name: manifests[name] for name in _in_order(manifests)}
    if not records:
        raise UserError(f"{run_dir}: no finished stage to report on")
    evaluation, rows, retained = None, [], []
    if "evaluate" in records:
        evaluation = _evaluation(records["evaluate"])
        rows = read_jsonl(run_dir / "evaluate" / "samples.jsonl")
        evaluation["prompts"] = len(rows)
        kept = run_dir / "evaluate" / RETAINED
        retained = read_jsonl(kept) if kept.is_file() else []
    trained = [name for name in records if name != "evaluate"]
    report: dict[str, Any] = {
        "name": run_dir.resolve().name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": rlhf.__version__,
        "stages": {name: _stage(run_dir / name, records[name]) for name in trained},
        "comparisons": [],
        "seeds": [],
        "groups": [],
        "retained": [],
        "comparing": (records["evaluate"]["metrics"].get("comparing") if "evaluate" in records else None) or {},
        "policies": [],
        "evaluation": evaluation,
        "samples": _displayed(rows),
        "curves": {name: _curves(run_dir / name / "metrics.jsonl") for name in trained},
        "provenance": {name: _provenance(record) for name, record in records.items()},
    }
    if evaluation:
        report |= _compared(evaluation, rows, retained)
        doubts = unproven(report["stages"])
        for row in (*report["comparisons"], *report["seeds"], *report["groups"]):
            row["doubted"] = row["judge"] in doubts
    return _finite(report)


def _compared(
    evaluation: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], retained: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What follows from the replies and from the rows that were not to be lost."""
    policies, judges, parents = (evaluation[key] for key in ("policies", "judges", "parents"))
    comparisons, seeds = over_seeds(compare_policies(rows, policies, judges, parents))
    column = evaluation["group_by"]
    groups = []
    if column is not None:
        first = [name for name in policies if name == kind_of(name)]  # of several seeds
        groups = compare_groups(rows, first, judges, parents, lambda row: row["columns"].get(column))
    return {
        "comparisons": comparisons,
        "seeds": seeds,
        "groups": groups,
        "retained": compare_retained(retained, policies, parents),
        "policies": [summarise(rows, name, judges, evaluation["references"].get(name)) for name in policies],
    }


def write_report(run_dir: str | Path) -> Path:
    """Write report.json, report.md and report.html into a run's folder, each whole or not at all.

    Returns:
        The path of report.html.
    """
    run_dir = Path(run_dir)
    report = build_report(run_dir)
    _write(run_dir / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    _write(run_dir / "report.md", html.render_markdown(report))
    _write(run_dir / "report.html", html.render_html(report, shown=SHOWN))
    return run_dir / "report.html"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: The file is missing, or holds no JSON object.
    """
    return _parse(_text(path), str(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; empty lines are passed over.

    Raises:
        UserError: The file is missing, or a line holds no JSON object.
    """
    lines = enumerate(_text(path).split("\n"), start=1)  # not splitlines: U+2028 may stand inside a JSON string
    return [_parse(line, f"{path}:{position}") for position, line in lines if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error.msg} (column {error.colno})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object")
    return value


def _in_order(names: Iterable[str]) -> list[str]:
    """Stages in the order they run; unknown ones after these."""
    order = {name: place for place, name in enumerate(stages())}

    def place(name: str) -> tuple[int, int, str]:
        seed = name.partition("@")[2]
        return order.get(kind_of(name), len(order)), int(seed) if seed.isdigit() else 0, name

    return sorted(names, key=place)


def _evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    metrics, config = record.get("metrics", {}), record.get("config", {})
    config = config.get("evaluate", config)
    chosen = {key: config.get(key) for key in ("samples", "temperature", "max_new_tokens")}
    judges = sorted(metrics["judges"], key=lambda judge: judge == "reward")  # policies may have been trained against it
    return {
        **chosen,
        "policies": metrics["policies"],
        "judges": judges,
        "prompts": metrics.get("prompts"),
        "prompts_cut": metrics.get("prompts_cut"),
        "group_by": metrics.get("group_by"),
        **{key: metrics.get(key) or {} for key in ("parents", "references")},
    }


def _stage(stage_dir: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record.get("metrics", {}), **_ledger(stage_dir), **_findings(stage_dir)}


def _findings(stage_dir: Path) -> dict[str, Any]:
    """`findings`: what the stage's data has that misleads, as in its file, and `lines`, what is worth telling."""
    path = stage_dir / FINDINGS_FILE
    if not path.is_file():
        return {}
    try:
        findings = Findings.load(stage_dir)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a file of findings; run the stage again") from None
    return {"findings": {"lines": findings.lines(), **findings.as_dict()}}


def _ledger(stage_dir: Path) -> dict[str, Any]:
    """`rows`: the counts of each set, and the first dropped rows as examples."""
    path = stage_dir / "ledger.json"
    if not path.is_file():
        return {}
    sets = {}
    for name, entry in read_json(path).get("sets", {}).items():
        counts = {key: value for key, value in entry.items() if key != "rows"}
        sets[name] = {**counts, "examples": entry.get("rows", [])[:_DROPPED_SHOWN]}
    return {"rows": sets}


def _curves(path: Path) -> dict[str, list[list[float]]]:
    """Metric -> its points; at most `_CURVE_POINTS` each, neighbours averaged, whatever the length of the run."""
    curves: dict[str, list[list[float]]] = {}
    if not path.is_file():
        return curves
    for row in read_jsonl(path):
        for key, value in row.items():
            if key not in ("step", "epoch") and _is_number(value) and _is_number(row.get("step")):
                curves.setdefault(key, []).append([row["step"], value])
    return {key: _thinned(points) for key, points in curves.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _thinned(points: Sequence[Sequence[float]]) -> list[list[float]]:
    size = math.ceil(len(points) / _CURVE_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [[sum(axis) / len(axis) for axis in zip(*group, strict=True)] for group in groups]


def _displayed(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first rows as they are, some more with one sample: in the order of the file, so that nothing is picked."""
    shown = []
    for position, row in zip(range(SHOWN + FOLDED), rows, strict=False):
        kept = None if position < SHOWN else 1
        replies = {policy: samples[:kept] for policy, samples in row["replies"].items()}
        shown.append({"index": row["index"], "prompt": row["prompt"], "replies": replies})
    return shown


def _provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _without_secrets(record[key]) for key in _PROVENANCE if key in record}


def _without_secrets(value: Any) -> Any:
    """A config may hold a hub token; a report is made to be passed on."""
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if not any(word in str(key).lower() for word in _SECRET_KEYS)}
        return {key: _without_secrets(item) for key, item in kept.items()}
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _write(path: Path, text: str) -> None:
    """Write beside the file, then put in its place, so that a reader never sees half."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # A reply may hold a lone surrogate, which UTF-8 cannot.
        partial.write_text(text, encoding="utf-8", errors="replace")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
