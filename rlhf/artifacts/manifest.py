"""The manifest of a finished stage (`stage.json`): what it came from, and how to tell that its files are unchanged.

This module alone reads and writes the file. It is light: JSON and hashes, no torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import rlhf
from rlhf.artifacts.confined import check_confined
from rlhf.artifacts.hashing import digest, sha256_file
from rlhf.artifacts.json_files import read_object, write_json
from rlhf.errors import UserError
from rlhf.workflow import Leaves, stages

MANIFEST = "stage.json"
"""The file that says a stage is finished."""

_MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".jsonl")
_NOT_MODEL = {
    MANIFEST, "metrics.jsonl", "ledger.json", "dropped.jsonl", "findings.json", "identity.json", "failure.json",
    "rollouts.jsonl", "tracked.jsonl", "incident.json",
}  # fmt: skip
"""Files of a stage's folder that describe how its model came about."""
_DIGEST = "sha256"
"""Entry of stage.json with the digest of all others."""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
"""Packages whose versions decide what a model computes."""
_REQUIRED: dict[str, type] = {
    "stage": str, "artifact": str, "hash": str, "identity": dict, "parents": dict, "versions": dict, "metrics": dict,
}  # fmt: skip

_OPTIONAL: dict[str, type] = {"kind": str, "repetition": int, "order": int, "label": str, "method": str, "leaves": str}

_verified: dict[Path, int] = {}
"""Folders that this process has verified, with the time at which their manifest was written, in nanoseconds."""


class Lineage(TypedDict):
    """The weights that a stage's model goes back to."""

    base: str
    """The original base model: a hub id, or a local folder."""
    revision: str | None
    adapter: bool
    """Whether the stage left an adapter on that base; otherwise whole weights."""
    commit: NotRequired[str | None]
    """Of a base on the hub, the commit that was loaded."""


class Manifest(TypedDict):
    """The fields of stage.json. Fields that are not listed here are kept as they stand.

    `read_manifest` gives a stage of an earlier version the `kind`, `repetition`, `order`, `label`, `method`, `leaves`
    and `trainer_config` that it did not record.
    """

    stage: str
    """Name of the stage: `dpo`, or `dpo@1` for a repetition with another seed."""
    kind: NotRequired[str]
    """The stage without its repetition: `dpo`."""
    repetition: NotRequired[int]
    """0 for the first."""
    order: NotRequired[int]
    """Stages run in this order."""
    label: NotRequired[str]
    """How tables and the report name it: `DPO`."""
    method: NotRequired[str]
    """What it does, as a model card says it."""
    leaves: NotRequired[Leaves]
    trainer_config: NotRequired[list[str]]
    """`module:Class` of its trainer's config, base classes first."""
    artifact: str
    """Hash over its model files (`artifact_hash`)."""
    hash: str
    """Digest of `identity`."""
    identity: dict[str, Any]
    """Everything that decides what the stage produces; a stage whose identity has changed is stale."""
    parents: dict[str, str | None]
    """The stages that it read, with the hash of each one's artefact."""
    versions: dict[str, str]
    """This package's version and those of `PACKAGES`."""
    metrics: dict[str, Any]
    """What the stage measured."""
    earlier_versions: NotRequired[list[dict[str, str]]]
    """Of a stage that was interrupted and continued after an upgrade, the `versions` that began it, oldest first."""
    config: NotRequired[dict[str, Any]]
    """Its settings: `trainer`, `model`, `evaluate` and `stage`."""
    seed: NotRequired[int]
    git_sha: NotRequired[str | None]
    """Commit of the project's checkout, where it is in one."""
    data: NotRequired[dict[str, Any]]
    """Fingerprints of the sets that it read."""
    wall_time_s: NotRequired[float]
    peak_memory_mb: NotRequired[float]
    """Largest resident memory of the main process."""
    tokenizer: NotRequired[dict[str, Any]]
    """Special tokens, and hashes of template and vocabulary (`models.tokenizer.tokenizer_record`)."""
    max_length: NotRequired[int | None]
    """Longest sequence it was trained on, in tokens."""
    prompt_format: NotRequired[str]
    """`messages` or `text`: what its prompts were."""
    lineage: NotRequired[Lineage]
    records: NotRequired[dict[str, str]]
    """SHA-256 of each file that describes how its model came about, and of its samples."""
    probe: NotRequired[dict[str, Any] | None]
    """A few sequences with the model's outputs (`models.probe.make`); None where its weights were sharded."""


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished stage, or None where the stage is not finished.

    Raises:
        UserError: The file is damaged, or another version of this package wrote it in a form that this one lacks.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    remedy = f"delete {folder} to run the stage again"
    fields = read_object(path, {}, remedy)
    recorded = fields.pop(_DIGEST, None)
    if recorded is not None and recorded != digest(fields):
        raise UserError(f"{path}: changed since the stage finished; put it back, or {remedy}")
    for name, kind in _REQUIRED.items():
        if not isinstance(fields.get(name), kind):
            versions = fields.get("versions")
            version = versions.get("rlhf") if isinstance(versions, dict) else None
            if version not in (None, rlhf.__version__):
                raise UserError(
                    f"{path}: rlhf {version} wrote this stage without {name!r}, and rlhf {rlhf.__version__} cannot use "
                    f"it; {remedy}"
                )
            raise UserError(f"{path}: has no {name!r}, or one of another type; {remedy}")
    for name, kind in _OPTIONAL.items():
        if name in fields and not isinstance(fields[name], kind):
            raise UserError(f"{path}: {name!r} is of another type; {remedy}")
    return cast(Manifest, {**_description(folder, fields), **fields})


def _description(folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage says of itself, as declared; else as far as it follows from the rest and its model's config."""
    kind, _, repetition = fields["stage"].partition("@")
    named = {"kind": kind, "repetition": int(repetition) if repetition.isdigit() else 0}
    if (stage := stages().get(kind)) is None:
        return {**named, "method": "", "leaves": _leaves(folder, fields), "trainer_config": []}
    return {
        **named, "order": stage.order, "label": stage.label, "method": stage.method, "leaves": stage.leaves,
        "trainer_config": list(stage.trainer),
    }  # fmt: skip


def _leaves(folder: Path, fields: Mapping[str, Any]) -> Leaves:
    if "policies" in fields["metrics"]:
        return "comparison"
    if "passed" in fields["metrics"]:
        return "verdict"
    if "lineage" not in fields:
        return "base"  # made from nothing, it goes back to no other model
    on_pairs = "preferences" in (fields.get("data") or {})
    return "scorer" if on_pairs and _is_classifier(folder) else "policy"


def _is_classifier(folder: Path) -> bool:
    """Whether the model in a folder has a head of its own for classes or scores, as its config says."""
    for name in ("adapter_config.json", "config.json"):
        if (folder / name).is_file():
            config = read_object(folder / name, {}, "train the stage again")
            architectures = config.get("architectures") or [""]
            return config.get("task_type") == "SEQ_CLS" or architectures[0].endswith("ForSequenceClassification")
    return False


def read_manifests(run_dir: Path) -> dict[str, Manifest]:
    """The manifests of a run's finished stages, by name, in alphabetical order.

    Raises:
        UserError: As `read_manifest`.
    """
    manifests = {name: read_manifest(run_dir / name) for name in finished_stages(run_dir)}
    return {name: manifest for name, manifest in manifests.items() if manifest is not None}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a stage's manifest, by which it is finished, with digests of itself and of the folder's records."""
    records = {path.name: sha256_file(path) for path in _records(folder)}
    fields = json.loads(json.dumps({**manifest, "records": records}, default=str))
    write_json(folder / MANIFEST, {**fields, _DIGEST: digest(fields)})


def check_records(folder: Path, manifest: Manifest) -> None:
    """Check that what a finished stage wrote down is unchanged; a file that is gone passes.

    Args:
        folder: The stage's folder.
        manifest: Its manifest; one of an earlier version records no digests.

    Raises:
        UserError: A file has changed, or cannot be read.
    """
    recorded = manifest.get("records", {})
    for path in _records(folder):
        if path.name in recorded and sha256_file(path) != recorded[path.name]:
            raise UserError(
                f"{path}: changed since the stage finished; put it back, or run the stage again with "
                f"--force {manifest['stage']}"
            )


def _records(folder: Path) -> list[Path]:
    """The files at the top of a stage's folder that are no part of its model, and its samples, in name order."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name != MANIFEST and (path.name in _NOT_MODEL or path.suffix == ".jsonl")
    )


def is_finished(folder: Path) -> bool:
    """Whether a folder is that of a finished stage."""
    return (folder / MANIFEST).is_file()


def finished_stages(run_dir: Path) -> list[str]:
    """Names of the finished stages in a run's folder, in alphabetical order; what is on its way there is left out."""
    return sorted(path.parent.name for path in run_dir.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


def verify(folder: Path) -> Manifest:
    """Check that a finished stage's files, and those of the base that its adapter is for, are unchanged.

    Returns:
        Its manifest.

    Raises:
        UserError: The stage is not finished, files have changed since, or a link among them leads outside.
    """
    check_confined(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder}: no finished stage is there (no {MANIFEST})")
    now = artifact_hash(folder)
    if now != manifest["artifact"]:
        raise UserError(
            f"{folder}: the model's files changed since the stage finished "
            f"(recorded {manifest['artifact'][:12]}, found {now[:12]}); run it again with --force {manifest['stage']}"
        )
    _verify_base(folder, manifest)
    _verified[folder.resolve()] = (folder / MANIFEST).stat().st_mtime_ns
    return manifest


def verify_once(folder: Path) -> None:
    """Call `verify` unless this process has verified the folder already: hashing large weights takes a while.

    Raises:
        UserError: As `verify`.
    """
    if _verified.get(folder.resolve()) != (folder / MANIFEST).stat().st_mtime_ns:
        verify(folder)


def _verify_base(folder: Path, manifest: Manifest) -> None:
    """Check that a local base is still the one an adapter was trained on (on the hub: `probe.check_commit`)."""
    lineage = manifest.get("lineage")
    recorded = (manifest["identity"].get("base") or {}).get("files")
    if recorded is None or not lineage or not lineage["adapter"] or not (base := Path(lineage["base"])).is_dir():
        return
    now = artifact_hash(base)
    if now != recorded:
        raise UserError(
            f"{folder}: its adapter is for {base}, whose files changed since the stage finished "
            f"(recorded {recorded[:12]}, found {now[:12]}); put the base back, or run it again with "
            f"--force {manifest['stage']}"
        )


def model_files(folder: Path) -> list[Path]:
    """The files at the top of a folder that make up its model (or its samples), in name order."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix in _MODEL_SUFFIXES and path.name not in _NOT_MODEL
    )


def artifact_hash(folder: Path) -> str:
    """One digest over the names and contents of a folder's model files."""
    return digest({path.name: sha256_file(path) for path in model_files(folder)})


def versions() -> dict[str, str]:
    """Version of this package and of those in `PACKAGES`."""
    return {"rlhf": rlhf.__version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}


def git_sha(folder: Path) -> str | None:
    """Commit of the checkout that a folder is in, or None."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
