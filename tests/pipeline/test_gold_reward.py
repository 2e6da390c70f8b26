"""A gold reward model: a reward model on the half of the preferences that nothing else trains on."""

import json

import pytest

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from rlhf.data.splits import half_for
from rlhf.errors import UserError
from rlhf.pipeline import identity, runner
from rlhf.workflow import parents_of, planned
from tests.support.projects import make_project, write_project

FEW = {"max_steps": 2, "learning_rate": 1e-2}
STAGES = {
    "reward": FEW,
    "gold_reward": FEW,
    "dpo": {**FEW, "checkpoint_judge": "gold_reward", "select": "best", "save_steps": 1},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama):
    project = make_project(tmp_path_factory.mktemp("gold"), tiny_llama, stages=STAGES)
    runner.run(project, say=lambda line: None)
    return project


def ledger(project, stage) -> dict:
    return json.loads((project.run_dir / stage / "ledger.json").read_text())["sets"]["preferences"]


def test_the_halves_share_no_row_and_leave_none_out(finished):
    counts = {stage: ledger(finished, stage) for stage in ("reward", "gold_reward", "dpo")}
    assert counts["reward"] == counts["dpo"], "what the policy sees the proxy may see"
    one, other = counts["reward"], counts["gold_reward"]
    assert one["trained"] == other["dropped"]["of the other half"]
    assert other["trained"] == one["dropped"]["of the other half"]
    assert min(one["trained"], other["trained"]) > 0
    assert one["evaluated"] == other["evaluated"], "the held-out pairs are the same"
    assert (finished.run_dir / "gold_reward/dropped.jsonl").read_text() == "", "they are counted, and not kept aside"


def test_it_scores_the_checkpoints_and_judges_the_replies(finished):
    found = read_manifest(finished.run_dir / "dpo")["metrics"]
    assert [one["step"] for one in found["tracked"]] == [0, 1, 2]
    assert read_manifest(finished.run_dir / "evaluate")["metrics"]["judges"] == ["reward", "gold_reward", "long"]
    assert (
        read_manifest(finished.run_dir / "gold_reward")["metrics"]["n"] == ledger(finished, "gold_reward")["evaluated"]
    )


def test_a_stage_that_is_held_against_it_waits_for_it(finished):
    assert parents_of(finished, "dpo") == ["gold_reward"]
    assert planned(finished) == ["reward", "gold_reward", "dpo", "evaluate"]
    assert [half_for(finished, name) for name in ("reward", "gold_reward", "dpo", "evaluate")] == [0, 1, 0, None]


def test_without_such_a_stage_everything_trains_on_everything(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama)
    assert half_for(project, "reward") is None
    with_gold = load_project(project.path, ["stages.gold_reward.max_steps=2"])
    before, after = (identity.identity(one, "reward") for one in (project, with_gold))
    assert identity.changes(before, after) == ["half"], "half of the pairs is another set"


def test_its_name_is_taken(tmp_path, tiny_llama):
    rewards = {"gold_reward": {"function": f"{tmp_path}/judge.py:score"}}
    with pytest.raises(UserError, match="'gold_reward' is a stage; give the judge another name"):
        load_project(write_project(tmp_path, tiny_llama, stages=STAGES, rewards=rewards))
