"""A stage trained from several seeds: as many stages, compared together; what follows starts from the first."""

import pytest

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.pipeline import runner
from rlhf.pipeline.runs import find_run, pick_stage
from rlhf.workflow import is_stage, parent_of, parents_of, planned, policies_of, stage_of
from tests.support.projects import make_project, write_project

SILENT = {"say": lambda line: None}
FEW = {"max_steps": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama):
    stages = {"sft": FEW, "dpo": {**FEW, "seeds": 2}}
    project = make_project(tmp_path_factory.mktemp("seeds"), tiny_llama, stages=stages)
    runner.run(project, **SILENT)
    return project


def test_each_seed_is_a_stage_of_its_own(finished):
    first, again = (read_manifest(finished.run_dir / name) for name in ("dpo", "dpo@1"))
    assert (first["seed"], again["seed"]) == (0, 1)
    assert first["parents"] == again["parents"]
    assert first["data"] == again["data"], "the split does not change with the seed of training"
    assert first["artifact"] != again["artifact"]
    assert read_manifest(finished.run_dir / "evaluate")["metrics"]["policies"] == ["base", "sft", "dpo", "dpo@1"]
    assert all(one.reason is None for one in runner.plan(finished))


def test_one_more_seed_trains_only_that_one(finished):
    more = load_project(finished.path, ["stages.dpo.seeds=3"])
    assert [one.stage for one in runner.plan(more) if one.reason] == ["dpo@2", "evaluate"]


def test_a_repetition_can_be_picked_by_its_name(finished):
    assert pick_stage(*find_run(f"{finished.run_dir}:dpo@1")) == finished.run_dir / "dpo@1"


def test_what_follows_starts_from_the_first(tmp_path, tiny_llama):
    stages = {"sft": {**FEW, "seeds": 2}, "reward": {**FEW, "seeds": 2}, "dpo": {**FEW, "seeds": 2}}
    project = make_project(tmp_path, tiny_llama, stages=stages)
    assert planned(project) == ["sft", "sft@1", "reward", "reward@1", "dpo", "dpo@1", "evaluate"]
    assert parent_of(project, "dpo@1") == "sft"
    assert parents_of(project, "evaluate") == ["sft", "sft@1", "reward", "dpo", "dpo@1"]
    assert policies_of(project) == ["sft", "sft@1", "dpo", "dpo@1"]


def test_names_of_repetitions():
    assert stage_of("dpo@2") is stage_of("dpo")
    assert is_stage("dpo@2")
    for wrong in ("dpo@", "dpo@x", "x@1"):
        assert not is_stage(wrong)


def test_seeds_must_be_a_number_of_at_least_one(tmp_path, tiny_llama):
    with pytest.raises(UserError, match=r"stages.dpo.seeds: must be at least 1, not 0"):
        load_project(write_project(tmp_path, tiny_llama, stages={"dpo": {"seeds": 0}}))
    with pytest.raises(UserError, match="seeds"):
        load_project(write_project(tmp_path, tiny_llama, stages={"dpo": {"seeds": "three"}}))
