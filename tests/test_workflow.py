"""Stages as their files declare them: a new one is known everywhere, and what each leaves stands in its manifest."""

import ast
from dataclasses import replace

import pytest

from rlhf.config.load import load_project
from rlhf.config.project import StageId
from rlhf.errors import UserError
from rlhf.pipeline.runner import plan
from rlhf.workflow import gates_of, parents_of, planned, policies_of, scorers, stage_of, stages
from tests.support.projects import write_project


@pytest.fixture
def declared(monkeypatch):
    """Two stages more: a policy `other` and a scorer `rater`."""
    monkeypatch.setitem(stages(), "other", replace(stages()["dpo"], name="other", order=45))
    monkeypatch.setitem(stages(), "rater", replace(stages()["reward"], name="rater", order=25))


def test_a_new_stage_is_planned_read_and_compared(declared, tmp_path, tiny_llama):
    given = {"sft": {}, "other": {"beta": 0.2, "seeds": 2}, "rater": {}, "ppo": {}}
    project = load_project(write_project(tmp_path, tiny_llama, stages=given))
    assert planned(project) == ["sft", "rater", "other", "other@1", "ppo", "evaluate"]
    assert {"sft", "other", "other@1", "rater", "ppo"} <= set(parents_of(project, "evaluate"))
    assert {"other", "other@1"} <= set(policies_of(project))
    assert "rater" in scorers()
    assert [entry.stage for entry in plan(project)] == planned(project)
    with pytest.raises(UserError, match="did you mean 'beta'"):
        load_project(project.path, ["stages.other.betta=1"])


@pytest.mark.parametrize(("name", "kind", "repetition"), [("dpo", "dpo", 0), ("dpo@12", "dpo", 12)])
def test_a_name_is_a_stage_and_its_repetition(name, kind, repetition):
    assert StageId.parse(name) == StageId(kind, repetition)
    assert str(StageId(kind, repetition)) == name


def test_a_gate_belongs_to_what_it_gates(tmp_path, tiny_llama):
    project = load_project(write_project(tmp_path, tiny_llama, stages={"sft": {}, "reward": {}, "ppo": {"seeds": 2}}))
    assert gates_of(project, "ppo") == gates_of(project, "ppo@1") == ["gate"]
    assert gates_of(project, "sft") == []
    assert parents_of(project, "gate") == ["sft", "reward"]


def test_every_stage_declares_what_others_read():
    for stage in stages().values():
        assert stage.label, stage.name
        assert bool(stage.trainer) == (stage.absent is None), (
            f"{stage.name} stands under stages:, or says when it is not"
        )
        assert stage.method or not stage.leaves_model, f"{stage.name} leaves a model, whose card says how it was made"
        for name in (*stage.follows, *stage.uses, *stage.rows_of):
            assert stage_of(name)


def test_no_room_below_the_stages_names_one(root):
    """What a stage is called stands in its own file."""
    names = {"sft", "reward", "dpo", "ppo"}  # the others are sections, settings or policies of the YAML too
    for room in ("config", "pipeline"):
        for path in (root / "rlhf" / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert node.value not in names, f"{path.name}:{node.lineno} names {node.value}"
