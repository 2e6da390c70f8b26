"""Checkpoints against a judge that training does not see: a planted reward that can be exploited, and the choice."""

import json

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf.config import load_project
from rlhf.errors import UserError
from rlhf.models import probe
from rlhf.pipeline import contract
from rlhf.pipeline.stage import run_stage
from rlhf.trainers.track import TRACKED
from tests.projects import make_project, pairs, write_project

JUDGES = '''
def text(completion):
    return completion if isinstance(completion, str) else completion[-1]["content"]


def longer(prompts, completions, **columns):
    """What is maximised: it can be exploited."""
    return [float(len(text(one))) for one in completions]


def wanted(prompts, completions, **columns):
    """What is meant: somewhat longer replies, not ever longer ones."""
    return [-abs(len(text(one)) - 60.0) for one in completions]
'''
PPO = {
    "rewards": {"longer": 1.0}, "gold": "wanted", "adapter": None, "max_steps": 24,
    "learning_rate": 1e-2, "num_ppo_epochs": 1,
    "per_device_train_batch_size": 32, "max_new_tokens": 16, "normalize_samples": 32, "save_steps": 0.125,
    "kl_coef": 0.0, "advantage": "rloo", "samples_per_prompt": 4, "lr_scheduler_type": "constant",
}  # fmt: skip


def planted(folder, base, **changes):
    """A project whose reward is the longer the better, with a gold judge that wants sixty characters."""
    (folder / "judges.py").write_text(JUDGES)
    rewards = {name: {"function": f"{folder / 'judges.py'}:{name}"} for name in ("longer", "wanted")}
    return make_project(folder, base, rewards=rewards, stages={"ppo": {**PPO, **changes}},
                        evaluate={"prompts": 6, "samples": 2, "max_new_tokens": 16})  # fmt: skip


@pytest.fixture(scope="module")
def selected(tmp_path_factory, tiny_llama):
    """The same training, once keeping the last checkpoint and once the gold peak."""
    found = {}
    for select in ("last", "gold"):
        project = planted(tmp_path_factory.mktemp(select), tiny_llama, select=select)
        run_stage(project, "ppo")
        found[select] = project
    return found


def metrics(project) -> dict:
    return contract.read_record(project.run_dir / "ppo")["metrics"]


def test_the_gold_score_turns_down_while_the_proxy_rises_and_it_is_said(selected):
    points = metrics(selected["last"])["tracked"]
    best = max(points[1:], key=lambda one: one["gold"])
    assert best["gold"] > points[0]["gold"]
    assert best["gold"] > points[-1]["gold"]
    assert points[-1]["proxy"] > best["proxy"] > points[0]["proxy"]
    assert points[0]["kl"] == 0 < points[-1]["kl"]
    assert abs(points[0]["proxy"]) < 1e-6, "in units of the starting policy's replies"
    said = metrics(selected["last"])["overoptimised"]
    assert f"turned down after step {best['step']}" in said
    assert "while what was maximised rose" in said


def test_select_gold_returns_a_checkpoint_above_the_last(selected):
    last, gold = metrics(selected["last"]), metrics(selected["gold"])
    assert [one["gold"] for one in last["tracked"]] == [one["gold"] for one in gold["tracked"]]
    score = {one["step"]: one["gold"] for one in gold["tracked"]}
    assert last["selected_step"] == max(score) > gold["selected_step"]
    assert score[gold["selected_step"]] > score[max(score)]


def test_what_is_left_behind_is_the_chosen_policy(selected):
    files = {}
    for select, project in selected.items():
        folder = project.run_dir / "ppo"
        record = contract.read_record(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert probe.outputs(model, record["probe"]["ids"]) == pytest.approx(record["probe"]["outputs"], abs=1e-3)
        files[select] = load_file(folder / "model.safetensors")
        assert not (folder / "candidates").exists()
        rows = [json.loads(line) for line in (folder / TRACKED).read_text().splitlines()]
        assert [row["step"] for row in rows] == [one["step"] for one in metrics(project)["tracked"]]
        assert {len(values) for row in rows for values in row["prompts"].values()} == {len(rows[0]["prompts"]["gold"])}
    assert any((files["last"][name] != files["gold"][name]).any() for name in files["last"])


@pytest.mark.parametrize("adapter", [{"r": 4}, None])
def test_dpo_is_tracked_without_a_proxy(tmp_path, tiny_llama, adapter):
    (tmp_path / "judges.py").write_text(JUDGES)
    rewards = {"wanted": {"function": f"{tmp_path / 'judges.py'}:wanted"}}
    dpo = {
        "max_steps": 4,
        "learning_rate": 1e-2,
        "gold": "wanted",
        "select": "gold",
        "save_steps": 2,
        "adapter": adapter,
    }
    project = make_project(tmp_path, tiny_llama, pairs(), rewards=rewards, stages={"dpo": dpo})
    run_stage(project, "dpo")
    found = contract.read_record(project.run_dir / "dpo")["metrics"]
    assert [one["step"] for one in found["tracked"]] == [0, 2, 4]
    assert found["tracked"][1]["proxy"] is None
    assert found["selected_step"] == max(found["tracked"][1:], key=lambda one: one["gold"])["step"]


@pytest.mark.parametrize(
    ("ppo", "message"),
    [
        ({"gold": "want"}, "there is no 'want' under rewards:; did you mean 'wanted'"),
        ({"gold": "longer"}, "is what the stage maximises"),
        ({"gold": None, "select": "gold"}, "gold needs a judge that training does not see"),
    ],
)
def test_a_gold_judge_must_be_another(tmp_path, tiny_llama, ppo, message):
    with pytest.raises(UserError, match=message):
        planted(tmp_path, tiny_llama, **ppo)


def test_a_gold_judge_belongs_to_a_policy(tmp_path, tiny_llama):
    path = write_project(tmp_path, tiny_llama, stages={"sft": {"gold": "long"}})
    with pytest.raises(UserError, match="checkpoints are scored of dpo and ppo"):
        load_project(path)


def test_another_judge_or_choice_makes_the_stage_stale(tmp_path, tiny_llama):
    identities = [
        contract.identity(planted(tmp_path, tiny_llama, **changes), "ppo")
        for changes in ({}, {"select": "gold"}, {"gold": None})
    ]
    assert contract.changes(identities[0], identities[1]) == ["gold.select"]
    assert contract.changes(identities[0], identities[2]) == ["gold"]
