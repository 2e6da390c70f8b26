"""The base stage of a project whose model is `scratch:`: a model with random weights, and its tokenizer."""

from __future__ import annotations

from rlhf.config.project import ProjectConfig
from rlhf.workflow import Metrics, Stage, StageContext


def run(context: StageContext) -> Metrics:
    """Write the model and its tokenizer."""
    from rlhf.models.scratch import build

    return {"parameters": build(context.project, context.directory).num_parameters()}


def absent(project: ProjectConfig) -> str | None:
    """Why a project has no such stage."""
    return None if project.model.scratch else "model: is loaded and not made: it has no scratch:"


STAGE = Stage(
    name="base",
    order=0,
    label="Base",
    leaves="base",
    run=run,
    method="Random weights, a starting point",
    absent=absent,
)
