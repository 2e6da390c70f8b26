"""Checkpoints against a judge that training does not see: a planted reward that can be exploited, and the choice."""

import json

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from rlhf.data.prepare import evaluation_prompts
from rlhf.errors import UserError
from rlhf.evaluation import checkpoints
from rlhf.evaluation.checkpoints import TRACKED, tracking_prompts
from rlhf.models import probe
from rlhf.pipeline import execute, identity
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.report.build import write_report
from rlhf.training.candidates import Candidates
from rlhf.workflow import StageContext
from tests.support.projects import make_project, pairs, write_project, write_rows

JUDGES = '''
def text(completion):
    return completion if isinstance(completion, str) else completion[-1]["content"]


def longer(prompts, completions, **columns):
    """What is maximised: it can be exploited."""
    return [float(len(text(one))) for one in completions]


def wanted(prompts, completions, **columns):
    """What is meant: somewhat longer replies, not ever longer ones."""
    return [-abs(len(text(one)) - 60.0) for one in completions]


def silent(prompts, completions, **columns):
    return [None for _ in completions]


calls = []


def second(prompts, completions, **columns):
    """Likes the checkpoint it is asked about second best: start 0, then 2, then 1."""
    calls.append(len(completions))
    return [[0.0, 2.0, 1.0][(len(calls) - 1) % 3] for _ in completions]
'''
PPO = {
    "rewards": {"longer": 1.0}, "checkpoint_judge": "wanted", "adapter": None, "max_steps": 24,
    "learning_rate": 1e-2, "num_ppo_epochs": 1,
    "per_device_train_batch_size": 32, "max_new_tokens": 16, "normalize_samples": 32, "save_steps": 0.125,
    "kl_coef": 0.0, "advantage": "rloo", "samples_per_prompt": 4, "lr_scheduler_type": "constant",
}  # fmt: skip


def planted(folder, base, **changes):
    """A project whose reward is the longer the better, with a checkpoint judge that wants sixty characters."""
    (folder / "judges.py").write_text(JUDGES)
    rewards = {name: {"function": f"{folder / 'judges.py'}:{name}"} for name in ("longer", "wanted")}
    return make_project(folder, base, rewards=rewards, stages={"ppo": {**PPO, **changes}},
                        evaluate={"prompts": 6, "samples": 2, "max_new_tokens": 16})  # fmt: skip


@pytest.fixture(scope="module")
def selected(tmp_path_factory, tiny_llama):
    """The same training, once keeping the last checkpoint and once the best."""
    found = {}
    for select in ("last", "best"):
        project = planted(tmp_path_factory.mktemp(select), tiny_llama, select=select)
        run_stage(project, "ppo")
        found[select] = project
    return found


def metrics(project) -> dict:
    return read_manifest(project.run_dir / "ppo")["metrics"]


def test_the_judges_score_turns_down_while_the_proxy_rises_and_it_is_said(selected):
    points = metrics(selected["last"])["tracked"]
    best = max(points[1:], key=lambda one: one["checkpoint_judge"])
    assert best["checkpoint_judge"] > points[0]["checkpoint_judge"]
    assert best["checkpoint_judge"] > points[-1]["checkpoint_judge"]
    assert points[-1]["proxy"] > best["proxy"] > points[0]["proxy"]
    assert points[0]["kl"] == 0 < points[-1]["kl"]
    assert abs(points[0]["proxy"]) < 1e-6, "in units of the starting policy's replies"
    said = metrics(selected["last"])["overoptimised"]
    assert f"turned down after step {best['step']}" in said
    assert "while what was maximised rose" in said


def test_select_best_returns_a_checkpoint_above_the_last(selected):
    last, best = metrics(selected["last"]), metrics(selected["best"])
    assert [one["checkpoint_judge"] for one in last["tracked"]] == [one["checkpoint_judge"] for one in best["tracked"]]
    score = {one["step"]: one["checkpoint_judge"] for one in best["tracked"]}
    assert last["selected_step"] == max(score) > best["selected_step"]
    assert score[best["selected_step"]] > score[max(score)]


def test_what_is_left_behind_is_the_chosen_policy(selected):
    files = {}
    for select, project in selected.items():
        folder = project.run_dir / "ppo"
        record = read_manifest(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert probe.outputs(model, record["probe"]["ids"]) == pytest.approx(record["probe"]["outputs"], abs=1e-3)
        files[select] = load_file(folder / "model.safetensors")
        assert not (folder / "candidates").exists()
        rows = [json.loads(line) for line in (folder / TRACKED).read_text().splitlines()]
        assert [row["step"] for row in rows] == [one["step"] for one in metrics(project)["tracked"]]
        assert {len(values) for row in rows for values in row["prompts"].values()} == {
            len(rows[0]["prompts"]["checkpoint_judge"])
        }
    assert any((files["last"][name] != files["best"][name]).any() for name in files["last"])


def dpo_project(folder, base, rows=None, judge="wanted", **changes):
    (folder / "judges.py").write_text(JUDGES)
    rewards = {"wanted": {"function": f"{folder / 'judges.py'}:{judge}"}}
    dpo = {
        "max_steps": 4,
        "learning_rate": 1e-2,
        "checkpoint_judge": "wanted",
        "select": "best",
        "save_steps": 2,
        **changes,
    }
    return make_project(folder, base, rows or pairs(), rewards=rewards, stages={"dpo": dpo})


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_llama):
    """A DPO stage of four steps that ended by itself."""
    project = dpo_project(tmp_path_factory.mktemp("whole"), tiny_llama)
    run_stage(project, "dpo")
    return project


@pytest.mark.parametrize("moment", ["kept", "scored", "saved"])
def test_an_interrupted_stage_chooses_among_the_same_checkpoints(tmp_path, tiny_llama, whole, monkeypatch, moment):
    """Killed before a checkpoint's policy was kept, before it was chosen among them, and before the end."""

    def killed(*args, **kwargs):
        raise Killed

    places = {
        "kept": (Candidates, "on_save"),
        "scored": (checkpoints, "_score_all"),
        "saved": (execute, "_record"),
    }
    broken = dpo_project(tmp_path, tiny_llama)
    with monkeypatch.context() as patch:
        patch.setattr(*places[moment], killed)
        with pytest.raises(Killed):
            run_stage(broken, "dpo")
    run_stage(broken, "dpo")
    assert not (broken.run_dir / "dpo/candidates").exists()
    first, second = (read_manifest(project.run_dir / "dpo") for project in (whole, broken))
    assert [one["step"] for one in second["metrics"]["tracked"]] == [0, 2, 4]
    assert second["metrics"]["tracked"] == first["metrics"]["tracked"]
    assert second["metrics"]["selected_step"] == first["metrics"]["selected_step"]
    assert second["probe"] == first["probe"]


def test_a_checkpoint_that_was_scored_is_not_scored_again(tmp_path, tiny_llama, monkeypatch):
    project, labels, complete = dpo_project(tmp_path, tiny_llama), [], checkpoints.complete

    def counted(project, opened, model, prompts, samples, label, reference, first):
        if label == "dpo step 4" and label not in labels:
            labels.append(label)
            raise Killed
        labels.append(label)
        return complete(project, opened, model, prompts, samples, label, reference, first)

    monkeypatch.setattr(checkpoints, "complete", counted)
    with pytest.raises(Killed):
        run_stage(project, "dpo")
    run_stage(project, "dpo")
    assert labels == ["dpo step 0", "dpo step 2", "dpo step 4", "dpo step 4"]
    assert not (project.run_dir / "dpo/kept").exists()


def test_the_metrics_are_those_of_the_checkpoint_that_is_kept(tmp_path, tiny_llama):
    kept = {}
    for select in ("best", "last"):
        (tmp_path / select).mkdir()
        project = dpo_project(tmp_path / select, tiny_llama, judge="second", select=select)
        run_stage(project, "dpo")
        kept[select] = read_manifest(project.run_dir / "dpo")["metrics"]
    assert kept["best"]["selected_step"] == 2
    assert kept["last"]["selected_step"] == 4
    assert kept["best"]["margin"] < kept["last"]["margin"], "an earlier checkpoint has moved less"


def test_a_judge_without_scores_keeps_the_last_and_says_so(tmp_path, tiny_llama):
    project = dpo_project(tmp_path, tiny_llama, judge="silent")
    run_stage(project, "dpo")
    found = read_manifest(project.run_dir / "dpo")["metrics"]
    assert found["selected_step"] == 4
    assert found["overoptimised"].startswith("the checkpoint judge scores 0 prompts")
    assert found["tracked"][1]["checkpoint_judge"] is None
    write_report(project.run_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_strategy": "no"}, "a checkpoint judge scores checkpoints"),
        ({"rows": pairs(6)}, "prompts to score checkpoints on"),
    ],
)
def test_what_cannot_be_tracked_is_refused_before_training(tmp_path, tiny_llama, changes, message):
    project = dpo_project(tmp_path, tiny_llama, **changes)
    with pytest.raises(UserError, match=message):
        prepare_stage(project, "dpo")


def test_checkpoints_are_not_chosen_on_the_prompts_of_the_comparison(tmp_path, tiny_llama):
    rows = pairs(60)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows[::2]])
    project = dpo_project(tmp_path, tiny_llama, rows)
    data = {
        "preferences": {"source": str(tmp_path / "pairs.jsonl"), "holdout": 0.5},
        "prompts": {"source": str(prompts)},
    }
    project = load_project(project.path, [f"data={json.dumps(data)}", "evaluate.prompts=100"])
    chosen = [prompt.prompt for prompt in tracking_prompts(StageContext(project, "dpo", tmp_path, {}))]
    compared = [one.prompt for one in evaluation_prompts(project, 100)]
    assert len(chosen) >= 6
    assert not set(chosen) & set(compared)


def test_that_checkpoints_are_held_against_trained_prompts_is_said(tmp_path, tiny_llama, capsys):
    """Without data.prompts all held-out prompts are those of the comparison."""
    project = dpo_project(tmp_path, tiny_llama, pairs(60))
    prepare_stage(project, "dpo")
    assert capsys.readouterr().err.startswith("dpo: checkpoints are ")
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"How is {n}?"} for n in range(20)])
    with_prompts = load_project(project.path, [f"data.prompts={json.dumps({'source': str(prompts)})}",
                                               "data.preferences.holdout=0.5"])  # fmt: skip
    prepare_stage(with_prompts, "dpo")
    assert "checkpoints are" not in capsys.readouterr().err


@pytest.mark.parametrize("adapter", [True, False])
def test_dpo_is_tracked_without_a_proxy(tmp_path, tiny_llama, whole, adapter):
    project = whole if adapter else dpo_project(tmp_path, tiny_llama, adapter=None)
    if not adapter:
        run_stage(project, "dpo")
    assert (project.run_dir / "dpo/adapter_config.json").exists() is adapter
    found = read_manifest(project.run_dir / "dpo")["metrics"]
    assert [one["step"] for one in found["tracked"]] == [0, 2, 4]
    assert found["tracked"][1]["proxy"] is None
    assert found["selected_step"] == max(found["tracked"][1:], key=lambda one: one["checkpoint_judge"])["step"]


@pytest.mark.parametrize(
    ("ppo", "message"),
    [
        ({"checkpoint_judge": "want"}, "there is no 'want' under rewards:; did you mean 'wanted'"),
        ({"checkpoint_judge": "longer"}, "is what the stage maximises"),
        ({"checkpoint_judge": None, "select": "best"}, "best needs a judge that training does not see"),
    ],
)
def test_a_checkpoint_judge_must_be_another(tmp_path, tiny_llama, ppo, message):
    with pytest.raises(UserError, match=message):
        planted(tmp_path, tiny_llama, **ppo)


def test_a_checkpoint_judge_belongs_to_a_policy(tmp_path, tiny_llama):
    path = write_project(tmp_path, tiny_llama, stages={"sft": {"checkpoint_judge": "long"}})
    with pytest.raises(UserError, match="a judge scores checkpoints of dpo, "):
        load_project(path)


def test_another_judge_or_choice_makes_the_stage_stale(tmp_path, tiny_llama):
    identities = [
        identity.identity(planted(tmp_path, tiny_llama, **changes), "ppo")
        for changes in ({}, {"select": "best"}, {"checkpoint_judge": None})
    ]
    assert identity.changes(identities[0], identities[1]) == ["checkpoint_judge.select"]
    assert identity.changes(identities[0], identities[2]) == ["checkpoint_judge"]
