"""A run with a reward model that learned nothing, or length, stops before PPO; with a sound one it goes on."""

import json
import random

import numpy as np
import pytest

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from rlhf.errors import GateClosed, UserError
from rlhf.evaluation.pairs import held_out_pairs
from rlhf.evaluation.reward_model import score_pairs
from rlhf.pipeline import runner
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.pipeline.gatekeeper import require_passed
from rlhf.pipeline.stage import launch
from rlhf.report.build import build_report
from rlhf.rewards.model import RewardModel
from tests.support.projects import make_project, write_project

KIND, RUDE = ["Hello", "thank", "please", "Monday"], ["system", "Human", "assistant", "0123"]
FILLER = ["lamp", "order", "kettle", "today", "back", "your"]
STAGES = {
    "reward": {"adapter": None, "learning_rate": 3e-3, "num_train_epochs": 4, "per_device_train_batch_size": 16},
    "ppo": {"max_steps": 2, "learning_rate": 1e-3, "num_ppo_epochs": 1, "max_new_tokens": 6, "normalize_samples": 8},
}
SILENT = {"say": lambda line: None}


def words(draw: random.Random, count: int, more: list[str] = ()) -> str:
    chosen = [draw.choice(FILLER) for _ in range(count)] + list(more)
    draw.shuffle(chosen)
    return " " + " ".join(chosen) + "."


def sound(draw: random.Random) -> tuple[str, str]:
    """The chosen reply has a kind word, the rejected a rude one; lengths are alike."""
    return tuple(words(draw, draw.randrange(2, 7), [draw.choice(kind)]) for kind in (KIND, RUDE))


def shuffled(draw: random.Random) -> tuple[str, str]:
    """The same with sides drawn by lot."""
    sides = list(sound(draw))
    draw.shuffle(sides)
    return sides[0], sides[1]


def lengthy(draw: random.Random) -> tuple[str, str]:
    """Nothing but length tells the two apart, and that in eight of ten pairs."""
    long, short = words(draw, draw.randrange(7, 10)), words(draw, draw.randrange(2, 5))
    return (long, short) if draw.random() < 0.8 else (short, long)


def rows(kind, count=360) -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        dict(zip(("prompt", "chosen", "rejected"), (f"Order {number}?", *kind(draw)), strict=True))
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def asked(tmp_path_factory, tiny_llama):
    """A project on pairs of one kind, run up to the gate's answer."""
    made = {}

    def make(kind):
        if kind not in made:
            path = write_project(tmp_path_factory.mktemp(kind.__name__), tiny_llama, rows(kind), stages=STAGES)
            project = load_project(path)
            answer = None
            try:
                runner.run(project, **SILENT)
            except GateClosed as error:
                answer = str(error)
            made[kind] = (project, answer)
        return made[kind]

    return make


def measured(project) -> dict:
    return read_manifest(project.run_dir / "gate")["metrics"]


def test_a_sound_reward_model_passes_and_the_run_goes_on(asked):
    project, answer = asked(sound)
    assert answer is None
    result = measured(project)
    assert result["passed"]
    model = result["models"]["reward"]
    assert model["accuracy_ci"][0] > model["length_baseline"]
    assert model["accuracy"] > 0.85
    assert model["reasons"] == model["advice"] == []
    assert read_manifest(project.run_dir / "evaluate") is not None


def test_shuffled_labels_are_stopped(asked):
    project, answer = asked(shuffled)
    assert "the gate is shut: ppo would maximise" in answer
    assert "held-out pairs rightly, which is not shown to be more than" in answer
    assert "rlhf check" in answer
    model = measured(project)["models"]["reward"]
    assert 0.3 < model["accuracy"] < 0.7
    assert not (project.run_dir / "ppo").exists()


def test_a_model_that_learned_length_is_stopped_though_it_is_right_more_often_than_chance(asked):
    project, answer = asked(lengthy)
    model = measured(project)["models"]["reward"]
    assert model["accuracy_ci"][0] > 0.5, "beats chance"
    assert not model["passed"], "but not the length baseline"
    assert model["prefers_longer"] > 0.9
    assert "it prefers the longer reply in" in answer


def test_the_gate_scores_what_the_stage_left_behind(asked):
    project, _ = asked(sound)
    pairs = held_out_pairs(project)
    scores_M2 = score_pairs(RewardModel(project.run_dir / "reward"), pairs.records)
    assert np.mean(scores_M2[:, 0] > scores_M2[:, 1]) == measured(project)["models"]["reward"]["accuracy"]
    stage, gate = read_manifest(project.run_dir / "reward")["metrics"], measured(project)["models"]["reward"]
    for name in ("n", "accuracy", "accuracy_ci", "length_baseline", "length_baseline_ci"):
        assert stage[name] == gate[name], "the stage and the gate have one definition"


def test_what_was_measured_is_complete(asked):
    project, _ = asked(sound)
    model = measured(project)["models"]["reward"]
    assert model["invariance"]["batch"] < 1e-3, "neither padding nor the other rows of a batch reach a score"
    assert model["prompts"] == model["n_effective"] == model["n"], "each prompt has one pair here"
    assert model["unscored"] == 0
    scores = model["scores"]
    for side in ("chosen", "rejected", "policy"):
        assert sum(scores[side]["counts"]) == scores[side]["n"]
    assert scores["chosen"]["mean"] > scores["rejected"]["mean"]
    assert sum(bin["n"] for bin in model["calibration"]) == model["n"] == sum(bin["n"] for bin in model["by_length"])
    assert 0 <= model["ece"] <= 1
    lines = [json.loads(line) for line in (project.run_dir / "gate/pairs.jsonl").read_text().splitlines()]
    margins = [line["margins"]["reward"] for line in lines]
    assert margins == sorted(margins), "the most wrong first"
    assert len(margins) == model["n"]


def test_a_shut_gate_ends_the_command_with_code_3_and_warn_goes_on(asked, capsys):
    project, _ = asked(shuffled)
    assert launch("ppo", ["--config", str(project.path)]) == 3
    assert "stopped: the gate is shut" in capsys.readouterr().err
    with pytest.raises(GateClosed, match="--gate warn"):
        runner.run(project, **SILENT)
    warned = load_project(project.path, ["gate=warn"])
    plans = runner.run(warned, **SILENT)
    assert "warning: the gate is shut" in capsys.readouterr().err
    assert [plan.stage for plan in plans if plan.reason] == ["ppo", "evaluate"], "the gate itself is not asked again"
    report = build_report(project.run_dir)
    assert report["stages"]["gate"]["passed"] is False


def test_a_stage_launched_before_its_gate_was_asked_says_so(asked, tmp_path, tiny_llama, capsys):
    project = make_project(tmp_path, tiny_llama, rows(sound, 80), stages=STAGES)
    run_stage(project, "reward")
    assert launch("ppo", ["--config", str(project.path)]) == 0
    assert "its reward model has not passed the gate" in capsys.readouterr().err


def test_without_held_out_pairs_it_is_said_before_anything_trains(tmp_path, tiny_llama):
    project = make_project(
        tmp_path, tiny_llama, rows(sound, 20), stages=STAGES,
        data={"preferences": {"source": str(tmp_path / "pairs.jsonl"), "holdout": 0.0}},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"no pair to judge the reward model by: holdout is 0"):
        prepare_stage(project, "gate")


def test_a_project_whose_reward_is_a_function_has_no_gate(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama, stages={"ppo": STAGES["ppo"]})
    assert [plan.stage for plan in runner.plan(project)] == ["ppo", "evaluate"]


def test_a_gate_that_was_asked_about_another_model_does_not_open(asked):
    """What it answered holds for the models, the data and the split that it was asked about."""
    project, _ = asked(sound)
    for change in ("data.preferences.holdout=0.4", "evaluate.temperature=0.5"):
        other = load_project(project.path, [change])
        with pytest.raises(UserError, match="whose answer is out of date"):
            runner.plan(other, only=["ppo"], force=["ppo"])
    assert [plan.stage for plan in runner.plan(project, only=["ppo"], force=["ppo"]) if plan.reason] == ["ppo"]
    with pytest.raises(UserError, match="whose answer is out of date"):
        runner.plan(project, only=["reward", "ppo"], force=["reward"])


def test_a_reward_model_without_pairs_to_judge_it_by_is_named(asked, tmp_path, tiny_llama, capsys):
    project, _ = asked(sound)
    data = {"rollouts": {"source": str(project.path.parent / "pairs.jsonl")}}
    rewards = {"other": {"model": str(project.run_dir / "reward")}}
    stages = {"ppo": STAGES["ppo"]}
    without = make_project(tmp_path, tiny_llama, rows(sound, 20), stages=stages, data=data, rewards=rewards)
    require_passed(without, "ppo")
    assert "nothing shows that other is a reward model" in capsys.readouterr().err


def test_after_a_shut_gate_an_evaluation_says_what_is_missing(asked):
    project, _ = asked(lengthy)
    with pytest.raises(UserError, match=r"evaluate needs ppo, not done yet: .* stops at a shut gate"):
        runner.plan(project, only=["evaluate"])
    off = load_project(project.path, ["evaluate=false"])
    with pytest.raises(UserError, match="evaluate: false switches the comparison off"):
        runner.plan(off, only=["evaluate"])
