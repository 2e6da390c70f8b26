"""A stage launched by itself: its options, and what it says where it cannot run."""

import pytest

from rlhf.config import trainer_fields
from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.pipeline import folder, runner, start
from rlhf.pipeline.stage import launch, main
from tests.support.projects import write_project


def said(capfd, stage, *words) -> str:
    assert launch(stage, words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    return line


def test_a_stage_that_the_project_lacks(tmp_path, tiny_llama, capfd):
    path = write_project(tmp_path, tiny_llama, stages={"sft": {}})
    assert "there is no stage 'reward'; add it under stages:" in said(capfd, "reward", "--config", str(path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rate", "nan"], "stages.sft.learning_rate: expected float, not 'nan'"),
        (["--learning_rate", ".nan"], "stages.sft.learning_rate: must be above 0, not nan"),
        (["--max_steps=0"], "stages.sft.max_steps: must be at least 1, or -1, not 0"),
        (["--seed", "3"], "--seed; seed: stands at the top of the YAML"),
        (["--learning_rat", "1"], "did you mean 'learning_rate'?"),
    ],
)
def test_options_are_held_to_the_same_bounds(tmp_path, tiny_llama, capfd, words, message):
    path = write_project(tmp_path, tiny_llama)
    assert message in said(capfd, "sft", "--config", str(path), *words)


def test_a_launched_stage_tells_its_own_exit_code(tmp_path, tiny_llama, monkeypatch, capfd):
    """Launchers of several processes end with 1 whatever became of them."""
    path, told = write_project(tmp_path, tiny_llama), tmp_path / "code"
    project = load_project(path)
    with folder.locked(project):
        words = ["stage", str(path), "sft", "--run", "of another run", "--tell", str(told)]
        monkeypatch.setattr("sys.argv", words)
        assert main() == 2
    assert told.read_text() == "2"
    assert "has ended" in capfd.readouterr().err


def test_how_a_stage_ended_is_said_where_it_could_not_say_it():
    assert "was killed; was there memory enough" in str(start.StageFailed("sft", -9))
    assert "aborted by a library (SIGABRT)" in str(start.StageFailed("sft", -6))
    assert "was ended by SIGHUP" in str(start.StageFailed("sft", -1))
    assert "exit code 7" in str(start.StageFailed("sft", 7))


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_help_lists_every_option(stage, capsys):
    with pytest.raises(SystemExit):
        launch(stage, ["--help"])
    words = set(capsys.readouterr().out.replace(",", " ").split())
    assert set(trainer_fields.trainer_fields(stage)) <= words
    assert {"--config", "--learning_rate"} <= words


@pytest.mark.parametrize(
    ("parents", "circle"),
    [
        ({"sft.parent": "dpo"}, "sft from dpo from sft"),
        ({"dpo.parent": "ppo", "ppo.parent": "dpo"}, "dpo from ppo from dpo"),
        ({"dpo.parent": "ppo", "ppo.parent": "dpo@1", "dpo.seeds": "2"}, "ppo from dpo@1 from ppo"),
        ({"dpo.parent": "dpo@1", "dpo.seeds": "2"}, "dpo@1 from dpo@1"),
    ],
)
def test_parents_in_a_circle_are_called_one(tmp_path, tiny_llama, parents, circle):
    path = write_project(tmp_path, tiny_llama, stages={"sft": {}, "dpo": {}, "ppo": {}})
    project = load_project(path, [f"stages.{key}={value}" for key, value in parents.items()])
    with pytest.raises(UserError) as caught:
        runner.plan(project)
    assert circle in str(caught.value)
    assert "--only" not in str(caught.value)


def test_a_parent_that_comes_later_is_run_first_by_itself(tmp_path, tiny_llama):
    project = load_project(write_project(tmp_path, tiny_llama, stages={"dpo": {"parent": "ppo"}, "ppo": {}}))
    with pytest.raises(UserError, match="dpo needs ppo, which comes after it: rlhf run --only"):
        runner.plan(project)
