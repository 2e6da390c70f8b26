"""Steps whose numbers are not finite, described in `incident.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlhf import processes
from rlhf.artifacts.json_files import write_json
from rlhf.models.shards import norm

INCIDENTS = "incident.json"
_MOST = 100
"""Incidents that the file keeps, the first ones."""
_NORMS = 50
"""Gradients that are listed, those that are not finite first, then the largest."""


def describe(file: Path | None, own: Mapping[str, Any], **common: Any) -> None:
    """Add an incident to the file. Every process calls it; the main one writes.

    Args:
        file: Where to; None writes nothing.
        own: What this process alone knows: its losses and rows.
        common: What all of them know.
    """
    by_process = processes.gathered({"process": processes.rank(), **own})
    if file is None or not processes.is_main():
        return
    earlier = json.loads(file.read_text(encoding="utf-8"))["incidents"] if file.is_file() else []
    incident = {**common, "processes": by_process}
    write_json(file, {"incidents": [*earlier, _in_json(incident)][:_MOST]})


def keep_through(file: Path, step: int) -> None:
    """Drop the incidents behind a step, which a resumed training meets again."""
    if file.is_file():
        incidents = json.loads(file.read_text(encoding="utf-8"))["incidents"]
        write_json(file, {"incidents": [incident for incident in incidents if incident["step"] <= step]})


def norms(model: torch.nn.Module) -> dict[str, Any]:
    """Norms of the trained weights and of their gradients, the gradients by parameter. Every process calls it.

    DeepSpeed keeps gradients apart from their parameters, and none is listed.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    gradients = {name: float(norm([weight.grad])) for name, weight in trained.items() if weight.grad is not None}
    ranked = sorted(gradients, key=lambda name: (math.isfinite(gradients[name]), -gradients[name]))
    return {
        "weight_norm": float(norm(trained.values())),
        "gradient_norms": {name: gradients[name] for name in ranked[:_NORMS]},
    }


def _in_json(value: Any) -> Any:
    """The same with `nan`, `inf` and `-inf` as text, since JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {key: _in_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
