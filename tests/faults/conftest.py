"""A run that is trained once; tests spoil copies of it."""

from __future__ import annotations

import pytest

from rlhf.pipeline.execute import run_stage
from tests.support.damage import STAGES
from tests.support.projects import make_project, pairs


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_llama):
    """SFT and a reward model on it."""
    project = make_project(tmp_path_factory.mktemp("guards"), tiny_llama, pairs(), stages=STAGES)
    for stage in ("sft", "reward"):
        run_stage(project, stage)
    return project
