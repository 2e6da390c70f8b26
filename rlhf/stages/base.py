"""The base stage of a project whose model is `scratch:`: a model with random weights, and its tokenizer."""

from __future__ import annotations

from typing import Any

from rlhf import processes
from rlhf.config.project import ProjectConfig
from rlhf.workflow import Metrics, Stage, StageContext


def run(context: StageContext) -> Metrics:
    """Write the model and its tokenizer."""
    from rlhf.models.scratch import build

    return processes.from_main(lambda: {"parameters": build(context.project, context.directory).num_parameters()})


def absent(project: ProjectConfig) -> str | None:
    """Why a project has no such stage."""
    return None if project.model.scratch else "model: is loaded and not made: it has no scratch:"


def identity(project: ProjectConfig, name: str) -> dict[str, Any]:
    """What its tokenizer comes from: a folder, or the sets that one is trained on."""
    from rlhf.artifacts.manifest import artifact_hash
    from rlhf.data.prepare import fingerprints

    tokenizer = (project.model.scratch or {}).get("tokenizer")
    if isinstance(tokenizer, str):
        folder = project.resolve(tokenizer)
        return {"vocabulary": artifact_hash(folder)} if folder.is_dir() else {}
    roles = [role for role in ("demonstrations", "preferences") if getattr(project.data, role) is not None]
    return {"data": {role: fingerprints(project, role) for role in roles}}


STAGE = Stage(
    name="base",
    order=0,
    label="Base",
    leaves="base",
    run=run,
    method="Random weights, a starting point",
    absent=absent,
    identity=identity,
)
