"""A run's folder -> report.json, report.md and report.html.

`build_report` gathers everything there is into one JSON value; the pages are rendered from that value alone.
"""

from __future__ import annotations

import datetime
import json
import math
import mimetypes
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import rlhf
from rlhf.artifacts.manifest import Manifest, check_records, read_manifests
from rlhf.artifacts.rounds import run_name
from rlhf.data.findings import FINDINGS_FILE, Findings
from rlhf.data.images import as_image
from rlhf.errors import UserError
from rlhf.evaluation.attributed import ATTRIBUTIONS, Attribution
from rlhf.evaluation.classifiers import MEASURES, classification, compare_classifiers
from rlhf.evaluation.compare import Comparison, compare_groups, compare_policies
from rlhf.evaluation.regressions import RETAINED, RetainedRow, compare_retained
from rlhf.evaluation.robustness import PERTURBED, PerturbedRow, robustness
from rlhf.evaluation.samples import Row
from rlhf.evaluation.seeds import over_seeds
from rlhf.evaluation.summary import summarise
from rlhf.evaluation.unjudged import LIKELIHOODS, LikelihoodRow, measure_without_judge
from rlhf.report import html, schema
from rlhf.report.caveats import unproven
from rlhf.report.rounds import rounds_of
from rlhf.report.schema import Curves, Evaluation, Provenance, Report, ShownPrompt, StageReport
from rlhf.workflow import kind_of

SHOWN = 12
"""Prompts whose replies the page shows with every sample."""
FOLDED = 48
"""Further prompts, with one sample each, that it shows folded away."""
_IMAGE_BYTES = 64_000
"""Largest image that stands in the report itself; of a larger one the path does."""
_LONGEST_PATH = 1000
_CURVE_POINTS = 300
_DROPPED_SHOWN = 10
_COMPARED = {"policy", "baseline", "judge", "mean_difference", "difference_ci", "verdict", "doubted"}
"""What lists of runs and their differences show of a comparison."""
_SECRET_KEYS = ("hub_token", "api_key", "password", "secret")
_PROVENANCE = (
    "label", "kind", "repetition", "order", "method", "leaves", "artifact", "hash", "parents", "data", "seed",
    "versions", "git_sha", "tokenizer", "max_length", "lineage", "wall_time_s", "peak_memory_mb", "config",
)  # fmt: skip


def build_report(run_dir: str | Path) -> Report:
    """Gather what a run's stages left behind.

    Works with whatever stages are finished: before policies have been compared there are no comparisons.

    Args:
        run_dir: A run's folder, `runs/NAME`.

    Raises:
        UserError: No such folder, no finished stage in it, or a file that cannot be read.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run")
    manifests = _manifests(run_dir)
    if not manifests:
        raise UserError(f"{run_dir}: no finished stage to report on")
    for name, manifest in manifests.items():
        check_records(run_dir / name, manifest)
    comparing = next((name for name, manifest in manifests.items() if _compares(manifest)), None)
    stages = {name: _stage(run_dir / name, manifest) for name, manifest in manifests.items() if name != comparing}
    report = Report(
        name=run_name(run_dir),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=rlhf.__version__,
        stages=stages,
        comparisons=[],
        measured=[],
        seeds=[],
        groups=[],
        rounds=rounds_of(run_dir, read_jsonl),
        retained=[],
        classification=None,
        robustness=None,
        attributions=[],
        comparing={},
        policies=[],
        evaluation=None,
        samples=[],
        curves={name: _curves(run_dir / name / "metrics.jsonl") for name in stages},
        provenance={name: _provenance(manifest) for name, manifest in manifests.items()},
    )
    if comparing is not None:
        _add_comparison(report, run_dir / comparing, manifests[comparing])
    return cast(Report, _finite(report))


def _manifests(run_dir: Path) -> dict[str, Manifest]:
    """The manifests of a run's finished stages, in the order they run; those of an unknown order after these."""

    def place(item: tuple[str, Manifest]) -> tuple[float, int, str]:
        name, manifest = item
        return manifest.get("order", math.inf), manifest.get("repetition", 0), name

    return dict(sorted(read_manifests(run_dir).items(), key=place))


def _compares(manifest: Manifest) -> bool:
    """Whether a stage compared policies."""
    return manifest.get("leaves") == "comparison"


def _add_comparison(report: Report, folder: Path, manifest: Manifest) -> None:
    """Add what follows from the completions, and from what else was measured, in a stage's folder."""
    rows = cast(list[Row], read_jsonl(folder / "samples.jsonl"))
    retained, perturbed, attributions, likelihoods = (
        read_jsonl(folder / name) if (folder / name).is_file() else []
        for name in (RETAINED, PERTURBED, ATTRIBUTIONS, LIKELIHOODS)
    )
    evaluation = _evaluation(manifest, len(rows), list(report["stages"]))
    policies, judges, parents = evaluation["policies"], evaluation["judges"], evaluation["parents"]
    report["evaluation"] = evaluation
    report["samples"] = _shown(rows)
    report["comparing"] = manifest["metrics"].get("comparing") or {}
    by_measure = compare_classifiers(rows, evaluation["kinds"], parents)
    evaluation["measures"] = [name for name in MEASURES if any(row["judge"] == name for row in by_measure)]
    compared = compare_policies(rows, policies, judges, parents)
    report["comparisons"], report["seeds"] = over_seeds([*compared, *by_measure])
    if schema.unjudged(report) and not schema.answers_only(report):
        held_out = cast(list[LikelihoodRow], likelihoods)
        report["measured"] = measure_without_judge(rows, held_out, policies, parents)
    report["classification"] = classification(rows, evaluation["kinds"], parents)
    if "label" in evaluation["kinds"].values():
        _show_images(report)
    column = evaluation["group_by"]
    if column is not None:
        first = [name for name in policies if name == kind_of(name)]  # of several seeds
        report["groups"] = compare_groups(rows, first, judges, parents, lambda row: row["columns"].get(column))
    report["retained"] = compare_retained(cast(list[RetainedRow], retained), policies, parents)
    scoring = [judge for judge in judges if judge not in report["comparing"]]
    report["robustness"] = robustness(rows, cast(list[PerturbedRow], perturbed), policies, scoring, parents)
    report["attributions"] = cast(list[Attribution], attributions)
    references = evaluation["references"]
    report["policies"] = [summarise(rows, name, judges, references.get(name)) for name in policies]
    doubts = unproven(report)
    over_rounds = report["rounds"]["comparisons"] if report["rounds"] else []
    for comparison in (*report["comparisons"], *report["groups"], *over_rounds):
        comparison["doubted"] = comparison["judge"] in doubts
    for summary in report["seeds"]:
        summary["doubted"] = summary["judge"] in doubts


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


def read_report(run_dir: Path) -> Report:
    """The report that `write_report` left in a run's folder.

    Raises:
        UserError: There is none, or its file holds no JSON object.
    """
    path = run_dir / "report.json"
    return cast(Report, _parse(_text(path), str(path)))


def read_comparisons(run_dir: Path) -> list[Comparison]:
    """The comparisons of a run's report.

    Raises:
        UserError: There is no report, or it was not written by this package, or by another version of it.
    """
    rows = dict(read_report(run_dir)).get("comparisons")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= _COMPARED for row in rows):
        raise UserError(f"{run_dir / 'report.json'}: has no comparisons of this version; rlhf report writes it")
    return cast(list[Comparison], rows)


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
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists without end
        raise UserError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object")
    return value


def _evaluation(manifest: Manifest, prompts: int, stages: Sequence[str]) -> Evaluation:
    metrics, config = manifest["metrics"], manifest.get("config", {})
    config = config.get("evaluate") or config
    place = {name: number for number, name in enumerate(stages)}  # a judge of a stage's name is its reward model
    return Evaluation(
        samples=config.get("samples"),
        temperature=config.get("temperature"),
        max_new_tokens=config.get("max_new_tokens"),
        policies=metrics["policies"],
        judges=sorted(metrics["judges"], key=lambda judge: (judge in place, -place.get(judge, 0))),
        measures=[],
        kinds=metrics.get("kinds") or {},
        prompts=prompts,
        prompts_cut=metrics.get("prompts_cut"),
        group_by=metrics.get("group_by"),
        parents=metrics.get("parents") or {},
        references=metrics.get("references") or {},
    )


def _stage(folder: Path, manifest: Manifest) -> StageReport:
    metrics = manifest["metrics"]
    ungated = manifest.get("leaves") == "verdict" and "gates" not in metrics
    if ungated or any("checkpoint_judge" not in point for point in metrics.get("tracked", [])):
        raise UserError(
            f"{folder}: an earlier version of rlhf wrote this stage, and this one cannot report it; run it again: "
            f"rlhf run YAML --force {manifest['stage']}"
        )
    return cast(StageReport, {**manifest["metrics"], **_ledger(folder), **_findings(folder)})


def _findings(stage_dir: Path) -> dict[str, Any]:
    """`findings`: what the stage's data has that misleads, as in its file, and `lines`, what is worth telling."""
    if not (stage_dir / FINDINGS_FILE).is_file():
        return {}
    findings = Findings.load(stage_dir)
    return {"findings": {"lines": findings.lines(), **findings.as_dict()}}


def _ledger(stage_dir: Path) -> dict[str, Any]:
    """`rows`: the counts of each set, and the first dropped rows as examples."""
    path = stage_dir / "ledger.json"
    if not path.is_file():
        return {}
    sets = {}
    for name, entry in _parse(_text(path), str(path)).get("sets", {}).items():
        counts = {key: value for key, value in entry.items() if key != "rows"}
        sets[name] = {**counts, "examples": entry.get("rows", [])[:_DROPPED_SHOWN]}
    return {"rows": sets}


def _curves(path: Path) -> Curves:
    """Metric -> its points; at most `_CURVE_POINTS` each, neighbours averaged, whatever the length of the run."""
    curves: Curves = {}
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


def _shown(rows: Iterable[Row]) -> list[ShownPrompt]:
    """The first rows as they are, some more with one sample: in the order of the file, so that nothing is picked."""
    shown = []
    for position, row in zip(range(SHOWN + FOLDED), rows, strict=False):
        kept = None if position < SHOWN else 1
        replies = {policy: samples[:kept] for policy, samples in row["replies"].items()}
        shown.append(ShownPrompt(index=row["index"], prompt=row["prompt"], replies=replies))
    return shown


def _show_images(report: Report) -> None:
    """Put the images that inputs name into the report, in place: a path would show nothing to who is given the page."""
    flips = report["classification"]["flips"] if report["classification"] else []
    flipped = [flip for entry in flips for rows in (entry["repaired_rows"], entry["broken_rows"]) for flip in rows]
    for row in (*report["samples"], *flipped):
        row["prompt"] = _pictured(row["prompt"])


def _pictured(prompt: Any) -> Any:
    """The path of a small image as a data URI; anything else as it is."""
    kind = mimetypes.guess_type(prompt)[0] if isinstance(prompt, str) and len(prompt) < _LONGEST_PATH else None
    if kind is None or not kind.startswith("image/"):
        return prompt
    try:
        path = Path(prompt)
        if path.stat().st_size > _IMAGE_BYTES:
            return prompt
        return as_image(path.read_bytes()) or prompt  # by its content: a row may name any file so
    except (OSError, ValueError):
        return prompt


def _provenance(manifest: Manifest) -> Provenance:
    fields: Mapping[str, Any] = manifest
    kept = {key: without_secrets(fields[key]) for key in _PROVENANCE if key in fields}
    return cast(Provenance, kept)


def without_secrets(value: Any) -> Any:
    """Settings less those that may hold a secret, such as a hub token: a report is made to be passed on."""
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if not any(word in str(key).lower() for word in _SECRET_KEYS)}
        return {key: without_secrets(item) for key, item in kept.items()}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


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
