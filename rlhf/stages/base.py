"""The base stage of a project whose model is `scratch:`: a model with random weights, and its tokenizer."""

from __future__ import annotations

from rlhf.workflow import Metrics, Stage, StageContext


def run(context: StageContext) -> Metrics:
    """Write the model and its tokenizer."""
    from rlhf.models.scratch import build

    return {"parameters": build(context.project, context.directory).num_parameters()}


STAGE = Stage("base", order=0, run=run)
