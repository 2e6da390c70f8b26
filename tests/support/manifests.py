"""A manifest with every required field, for stages that no pipeline ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.artifacts.manifest import Manifest, artifact_hash, versions, write_manifest


def manifest(stage: str, **fields: Any) -> Manifest:
    """The manifest of a stage, with these fields."""
    required = {
        "stage": stage, "artifact": "", "hash": "0" * 64, "identity": {}, "parents": {}, "versions": versions(),
        "metrics": {},
    }  # fmt: skip
    return {**required, **fields}  # type: ignore[typeddict-item]


def finish(folder: Path, **fields: Any) -> Manifest:
    """Write the manifest of a stage whose model files are in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = manifest(folder.name, **{"artifact": artifact_hash(folder), **fields})
    write_manifest(folder, written)
    return written
