"""What a stage has left, as hashes: two runs are the same if all of these are, times apart."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

TIMES = ("runtime", "per_second", "time_s", "wall_time_s", "peak_memory_mb")
"""Ends of the names of fields that say how long something took or how much memory was held."""


def fingerprints(folder: Path) -> dict[str, str]:
    """File below a stage's folder -> hash of its bytes; of JSON, of all but times; of `stage.json`, of its metrics.

    Checkpoints that were damaged are kept under another name; there are none in a run that was left alone.
    """
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    compared = [name for name in files if not re.search(r"training_args.bin|/(torn|damaged)-", name)]
    return {name: _hash(files[name], str(folder.parent)) for name in compared}


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Files that are not the same on both sides, or stand on one of them only."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _hash(path: Path, run: str) -> str:
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        rows = [json.loads(line) for line in data.splitlines()] if path.suffix == ".jsonl" else json.loads(data)
        if path.name == "stage.json":
            rows = rows["metrics"]
        elif path.name == "checkpoint.json":  # has hashes of files that are compared themselves, and of their times
            rows = {"step": rows["step"], "files": sorted(rows["files"])}
        data = json.dumps(_timeless(rows), sort_keys=True).replace(run, "RUN").encode()
    return hashlib.sha256(data).hexdigest()


def _timeless(value: Any) -> Any:
    """The value without times; what peft writes in the order of a set is sorted."""
    if isinstance(value, dict):
        if isinstance(value.get("target_modules"), list):
            value["target_modules"].sort()
        return {key: _timeless(each) for key, each in value.items() if not key.endswith(TIMES) and "time/" not in key}
    return [_timeless(each) for each in value] if isinstance(value, list) else value
