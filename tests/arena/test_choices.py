"""Which policies and judges the arena takes."""

import pytest

from rlhf.arena.choices import chosen_judges, chosen_policies
from rlhf.errors import UserError
from tests.support import manifests
from tests.support.projects import make_project


@pytest.fixture
def project(tmp_path):
    rewards = {
        "long": {"function": f"{tmp_path}/judge.py:score"},
        "gpt": {"endpoint": "http://127.0.0.1:1/v1", "judge_model": "m"},
    }
    stages = {"sft": {}, "reward": {}, "dpo": {"seeds": 2}, "ppo": {}}
    project = make_project(tmp_path, tmp_path / "no-model", rewards=rewards, stages=stages)
    for name in ("sft", "reward", "dpo", "dpo@1"):
        folder = project.run_dir / name
        folder.mkdir(parents=True)
        manifests.finish(folder)
    return project


def test_the_finished_policies_are_compared(project):
    assert chosen_policies(project, [], 0) == ["sft", "dpo"]
    assert chosen_policies(project, ["dpo@1", "base", "dpo@1"], 0) == ["dpo@1", "base"]
    assert chosen_policies(project, ["dpo"], 1) == ["dpo"]


@pytest.mark.parametrize(
    "wanted", [["dop"], ["ppo"], ["reward"], ["dpo"], ["../../etc/passwd", "sft"], ["dpo@7", "sft"]]
)
def test_what_cannot_be_compared_is_refused(project, wanted):
    with pytest.raises(UserError):
        chosen_policies(project, wanted, 0)


def test_the_base_model_stands_in_where_only_one_policy_is_finished(tmp_path):
    project = make_project(tmp_path, tmp_path / "no-model", stages={"sft": {}})
    with pytest.raises(UserError):
        chosen_policies(project, [], 0)
    (project.run_dir / "sft").mkdir(parents=True)
    manifests.finish(project.run_dir / "sft")
    assert chosen_policies(project, [], 0) == ["base", "sft"]
    assert chosen_policies(project, [], 1) == ["sft"]


def test_judges_that_cost_money_are_asked_only_where_they_are_named(project):
    assert chosen_judges(project, []) == (["reward", "long"], [])
    assert chosen_judges(project, ["gpt", "reward"]) == (["reward"], ["gpt"])
    with pytest.raises(UserError, match="reward"):
        chosen_judges(project, ["rewrad"])
