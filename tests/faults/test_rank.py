"""What can be wrong with what is ranked, and with what ranks."""

import pytest

from rlhf.config.load import load_project
from rlhf.data.ledger import Ledger
from rlhf.errors import UserError
from rlhf.pipeline.execute import prepare_stage, run_stage
from tests.support.projects import pairs, write_project

RANK = {"samples": 3, "max_new_tokens": 8, "rewards": {"long": 1.0}}


def project_of(folder, base, rows=None, judge=None, **rank):
    path = write_project(folder, base, rows, stages={"rank": {**RANK, **rank}, "dpo": {"max_steps": 1}})
    if judge is not None:
        (folder / "judge.py").write_text(f"def score(prompts, completions, **columns):\n    return {judge}\n")
    return load_project(path)


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ({"lnog": 1.0}, "did you mean 'long'"),
        ({"reward": 1.0}, "no 'reward' stage"),
        ({"long": "much"}, "expected a weight"),
    ],
)
def test_rewards_that_are_not_there(tmp_path, tiny_llama, rewards, said):
    with pytest.raises(UserError, match=said):
        prepare_stage(project_of(tmp_path, tiny_llama, rewards=rewards), "rank")


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        ("[None for _ in completions]", "no judge scored a reply"),
        ("[1.0 for _ in completions]", "no reply scores lower"),
    ],
)
def test_a_judge_that_says_nothing(tmp_path, tiny_llama, judge, reason):
    project = project_of(tmp_path, tiny_llama, judge=judge, truncated="score")
    with pytest.raises(UserError, match=f"nothing is kept of .* prompts: .*{reason}"):
        run_stage(project, "rank")
    assert not (project.run_dir / "rank").exists()


def test_replies_that_never_end(tmp_path, tiny_llama):
    project = project_of(tmp_path, tiny_llama, max_new_tokens=1)
    with pytest.raises(UserError, match="every reply was cut at max_new_tokens"):
        run_stage(project, "rank")


def test_prompts_that_leave_no_room_are_counted(tmp_path, tiny_llama):
    rows = pairs()
    rows[3]["prompt"] *= 60
    project = project_of(tmp_path, tiny_llama, rows, max_length=100, truncated="score", prompts=5)
    run_stage(project, "rank")
    ledger = Ledger.load(project.run_dir / "rank")
    ledger.check()
    assert ledger.dropped["prompt leaves no room for a reply within max_length"] <= 1
    assert ledger.trained + ledger.dropped["not among the prompts asked for"] < 40
    assert ledger.trained <= 5
