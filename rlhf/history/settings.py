"""What two runs were made of: settings, data and packages, by dotted key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from rlhf.artifacts.json_files import read_object
from rlhf.artifacts.manifest import Manifest
from rlhf.report.build import without_secrets
from rlhf.training.defaults import settings_of
from rlhf.workflow import is_stage, kind_of, stage_of

Values = dict[str, Any]
"""Dotted key -> value, as a manifest holds it."""
_LEDGER = "ledger.json"
_HEX = 64
"""Characters of a SHA-256."""


class Difference(TypedDict, total=False):
    """A key in which two runs differ. A side that has no such key is left out."""

    key: str
    """Dotted, as in the YAML."""
    first: Any
    """Its value in the first run."""
    second: Any
    """Its value in the second run."""


def differing(first: Values, second: Values) -> list[Difference]:
    """The keys whose values differ, in the order of the first and then of the second; 1 and 1.0 are equal."""
    differences = []
    for key in dict.fromkeys([*first, *second]):
        sides = {name: side[key] for name, side in (("first", first), ("second", second)) if key in side}
        if len(sides) == 1 or sides["first"] != sides["second"]:
            differences.append(Difference(key=key, **sides))  # type: ignore[typeddict-item]
    return differences


def settings(first: Mapping[str, Manifest], second: Mapping[str, Manifest]) -> list[Difference]:
    """The settings in which two runs differ, in stages that both have, by their keys in the YAML.

    A trainer's field that one YAML leaves out has its default. Whatever may hold a secret is left out.
    """
    shared = [name for name in first if name in second]
    models = _models([{name: run[name] for name in shared} for run in (first, second)])
    sides = [
        {**model, **_flat(_stage_settings(run[name], other[name]) for name in shared)}
        for model, run, other in zip(models, (first, second), (second, first), strict=True)
    ]
    return differing(*sides)


def _stage_settings(manifest: Manifest, other: Manifest) -> Values:
    """The settings of a stage that either of two runs writes out, with their full keys."""
    config = without_secrets(manifest.get("config") or {})
    trainer, beside = config.get("trainer") or {}, (other.get("config") or {}).get("trainer") or {}
    name = manifest["stage"]
    silent = settings_of(kind_of(name), {}) if is_stage(name) and stage_of(name).trainer else {}
    filled = {key: trainer.get(key, silent.get(key)) for key in [*trainer, *without_secrets(beside)]}
    rewards = without_secrets(manifest["identity"].get("rewards") or {})
    return {
        "seed": manifest.get("seed"),
        "stages": {name: {**filled, **(config.get("stage") or {})}},
        **(
            {"evaluate": config["evaluate"]}
            if config.get("evaluate") and manifest.get("leaves") == "comparison"
            else {}
        ),
        **({"rewards": rewards} if manifest.get("leaves") == "comparison" else {}),
    }


def _models(runs: Iterable[Mapping[str, Manifest]]) -> list[Values]:
    """The `model` section of each run: `model.dtype` where all stages have the same, else `stages.dpo.model.dtype`."""
    per_stage = [
        {name: _dotted(without_secrets((each.get("config") or {}).get("model") or {})) for name, each in run.items()}
        for run in runs
    ]
    keys = dict.fromkeys(key for run in per_stage for values in run.values() for key in values)
    alike = {key for key in keys if all(_same(values.get(key) for values in run.values()) for run in per_stage)}
    return [
        {
            (f"model.{key}" if key in alike else f"stages.{name}.model.{key}"): values[key]
            for name, values in run.items()
            for key in keys
            if key in values
        }
        for run in per_stage
    ]


def _same(values: Iterable[Any]) -> bool:
    first, *rest = list(values) or [None]
    return all(value == first for value in rest)


def data(manifests: Mapping[str, Manifest], run_dir: Path) -> Values:
    """What identifies a run's data and base model, and how many rows each stage read, trained on and held out.

    Raises:
        UserError: A ledger is damaged.
    """
    values: Values = {}
    for name, manifest in manifests.items():
        for role, fingerprint in (manifest.get("data") or {}).items():
            for key, value in _dotted(fingerprint, lists=_sources).items():
                values.setdefault(f"data.{role}.{key}", value)
        for key, value in _dotted(manifest["identity"].get("base") or {}).items():
            values.setdefault(f"base.{key}", value)
        if (path := run_dir / name / _LEDGER).is_file():
            sets = read_object(path, {"sets": dict}, f"run {name} again")["sets"]
            counts = {role: _counts(entry) for role, entry in sets.items()}
            values |= {f"rows.{name}.{key}": value for key, value in _dotted(counts).items()}
    return values


def _sources(value: list[Any]) -> Any:
    """The sources of a set as text: names, with the beginning of a fingerprint."""
    if not all(isinstance(entry, dict) for entry in value):
        return value
    return "; ".join(" ".join(_short(part) for part in entry.values()) for entry in value)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == _HEX and text.isalnum() else text


def _counts(entry: Any) -> Values:
    """Numbers of a ledger's entry: rows read, trained on, dropped by reason."""
    if not isinstance(entry, dict):
        return {}
    return {key: value for key, value in entry.items() if isinstance(value, int | dict)}


def packages(manifests: Mapping[str, Manifest]) -> Values:
    """The versions that made a run, and the commit of its project; several where its stages differ."""
    versions_of: dict[str, dict[str, None]] = {}
    for manifest in manifests.values():
        for name, version in {**manifest["versions"], "commit": (manifest.get("git_sha") or "")[:12] or None}.items():
            if version is not None:
                versions_of.setdefault(name, {})[version] = None
    return {name: ", ".join(versions) for name, versions in versions_of.items()}


def _flat(parts: Iterable[Values]) -> Values:
    """Nested objects as one with dotted keys; of equal keys the first counts."""
    values: Values = {}
    for part in parts:
        values |= {key: value for key, value in _dotted(part).items() if key not in values}
    return values


def _dotted(value: Any, prefix: str = "", lists: Callable[[list[Any]], Any] = lambda value: value) -> Values:
    """A nested object with dotted keys; lists are values. An empty object is left out."""
    if not isinstance(value, dict):
        return {prefix: lists(value) if isinstance(value, list) else value}
    flat: Values = {}
    for key, inner in value.items():
        flat |= _dotted(inner, f"{prefix}.{key}" if prefix else str(key), lists)
    return flat
