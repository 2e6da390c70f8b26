"""Rounds: what they start from, what they train on, what is frozen, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from rlhf.artifacts.manifest import artifact_hash, read_manifest, verify
from rlhf.config.load import load_project
from rlhf.data.prepare import iter_records
from rlhf.data.records import Feedback
from rlhf.data.sources import read_rows
from rlhf.data.votes import read_votes
from rlhf.errors import UserError
from rlhf.models.load import adapter_config
from rlhf.pipeline import folder, identity, rounds, runner, start
from rlhf.pipeline.launch_file import Launch
from rlhf.pipeline.runs import find_run, pick_stage
from rlhf.pipeline.view import View
from tests.support.kill import at_every_change
from tests.support.projects import make_project, write_project
from tests.support.runs import add_stage
from tests.support.votes import cast_votes

SILENT = {"say": lambda line: None}
PAIRS = [(f"Zoe asks about soap {number}.", " Hello Zoe.", " No idea.", "first") for number in range(12)]


@pytest.fixture
def project(tmp_path, tiny_llama):
    """A project whose first round is done, without training."""
    made = make_project(tmp_path, tiny_llama)
    for name, parent in (("sft", None), ("reward", "sft"), ("dpo", "sft")):
        add_stage(made.run_dir, name, tiny_llama, parent, labels=int(name == "reward"))
    return made


def test_a_round_starts_from_the_last_policy_and_mixes_in_what_was_voted(project):
    cast_votes(project.run_dir, PAIRS)
    made = rounds.begin(replace(project, rounds=replace(project.rounds, votes=3.0, earlier=0.5)), 2)
    assert made.run_dir == project.run_dir / "round-2"
    assert made.model.name_or_path == str(project.run_dir / "dpo")
    assert list(made.stages) == ["reward", "dpo"]
    own, votes = made.data.preferences.sources
    assert (own.weight, votes.weight, votes.all_trained) == (0.5, 3.0, True)
    assert made.holdout == project.holdout
    rows = [row for row, _ in read_rows(votes, made.path.parent)]
    assert [row["prompt"] for row in rows] == [prompt for prompt, *_ in PAIRS]
    record = json.loads((made.run_dir / "round.json").read_text())
    assert record == {"round": 2, "start": "dpo", "leaves": "dpo", "votes": 12,
                      "rows": {"preferences": 12, "demonstrations": 0, "feedback": 0}}  # fmt: skip


def test_what_it_starts_from_decides_with_what_that_is_for(project, tiny_llama):
    cast_votes(project.run_dir, PAIRS)
    parts = identity.identity(rounds.begin(project, 2), "dpo")["base"]
    assert parts == {"adapter": artifact_hash(project.run_dir / "dpo"), "files": artifact_hash(tiny_llama)}


@pytest.mark.parametrize("source", [{"source": "pairs.jsonl", "train_all": True}, {"source": "votes:tiny"}])
def test_prompts_to_evaluate_on_do_not_train(tmp_path, tiny_llama, source):
    data = {"preferences": {"source": str(tmp_path / "pairs.jsonl")}, "prompts": source}
    with pytest.raises(UserError, match=r"data\.prompts: .*: nothing trains on prompts to evaluate on"):
        make_project(tmp_path, tiny_llama, data=data)


def test_votes_that_come_later_change_nothing(project):
    cast_votes(project.run_dir, PAIRS)
    before = rounds.begin(project, 2)
    files = {path: path.read_bytes() for path in before.run_dir.rglob("*") if path.is_file()}
    cast_votes(project.run_dir, PAIRS, annotator="Ben")
    assert rounds.begin(project, 2) == before
    assert {path: path.read_bytes() for path in before.run_dir.rglob("*") if path.is_file()} == files


def test_a_round_that_is_killed_as_it_begins_begins_again_and_leaves_nothing(project):
    cast_votes(project.run_dir, PAIRS)
    round_dir = project.run_dir / "round-2"
    left, at_work = (project.run_dir / f".round-2.{number}.partial" for number in (ended_process(), os.getppid()))
    before = set(project.run_dir.iterdir()) | {at_work}

    def reset():
        shutil.rmtree(round_dir, ignore_errors=True)
        left.mkdir(exist_ok=True)
        at_work.mkdir(exist_ok=True)

    reset()
    made = rounds.begin(project, 2)
    for where in at_every_change(project.run_dir, reset, lambda: rounds.begin(project, 2)):
        assert rounds.begin(project, 2) == made, where
        assert len((round_dir / "votes/preferences.jsonl").read_text().splitlines()) == 12, where
        assert set(project.run_dir.iterdir()) <= {*before, round_dir}, where


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_third_round_has_the_votes_of_both_before_it(project, tiny_llama):
    cast_votes(project.run_dir, PAIRS)
    second = rounds.begin(project, 2)
    add_stage(second.run_dir, "dpo", tiny_llama)
    with pytest.raises(UserError, match="no votes since round 2 began"):
        rounds.begin(project, 3)
    cast_votes(second.run_dir, [("A new one?", " Yes.", " No.", "second")])
    frozen = (second.run_dir / "votes" / "preferences.jsonl").read_bytes()
    third = rounds.begin(project, 3)
    assert third.model.name_or_path == str(second.run_dir / "dpo")
    lines = (third.run_dir / "votes" / "preferences.jsonl").read_text().splitlines()
    assert len(lines) == 13
    assert (second.run_dir / "votes" / "preferences.jsonl").read_bytes() == frozen


@pytest.mark.parametrize(("number", "said"), [(1, "round 1"), (0, "round 1"), (3, "round 2 has not begun")])
def test_rounds_that_cannot_be(project, number, said):
    cast_votes(project.run_dir, PAIRS)
    with pytest.raises(UserError, match=said):
        rounds.begin(project, number)


def test_without_votes_or_a_finished_round_there_is_no_next(project, tmp_path):
    with pytest.raises(UserError, match="nothing new for round 2: no votes since"):
        rounds.begin(project, 2)
    cast_votes(project.run_dir, [("Well?", " a", " b", "skip")])
    with pytest.raises(UserError, match="nothing new for round 2: no votes since"):
        rounds.begin(project, 2)
    cast_votes(project.run_dir, [("Well?", " a", " b", "tie")], edit=" c")
    with pytest.raises(UserError, match=r"the votes give 0 preferences, 1 demonstrations"):
        rounds.begin(project, 2)
    assert not (project.run_dir / "round-2").exists()
    elsewhere = replace(project, output_dir=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="round 1 is not finished"):
        rounds.begin(elsewhere, 2)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"stages": ["kto"]}, r"rounds\.stages: the project has no stage 'kto'"),
        ({"stages": []}, r"rounds\.stages: names none"),
        ({"start": "reward"}, r"rounds\.start: 'reward' is no policy"),
        ({"start": "sft"}, r"rounds\.start: sft does not run in later rounds"),
        ({"votes": 0}, r"rounds\.votes"),
        ({"vote": 1}, r"unknown key 'rounds\.vote'"),
    ],
)
def test_a_rounds_section_that_cannot_be(tmp_path, tiny_llama, section, said):
    with pytest.raises(UserError, match=said):
        make_project(tmp_path, tiny_llama, rounds=section)


def test_what_a_stage_maximises_is_trained_in_its_round(tmp_path, tiny_llama):
    stages = {"sft": {}, "reward": {}, "ppo": {}}
    with pytest.raises(UserError, match=r"rounds\.stages: ppo needs reward"):
        make_project(tmp_path, tiny_llama, stages=stages, rounds={"stages": ["ppo"]})


def test_a_wrong_key_is_held_against_those_of_the_section(tmp_path, tiny_llama):
    with pytest.raises(UserError, match=r"rounds\.earleir.*did you mean 'earlier'"):
        make_project(tmp_path, tiny_llama, stages={"dpo": {}}, rounds={"earleir": 0.5})


def test_a_round_that_ranks_needs_no_votes(tmp_path, tiny_llama):
    stages = {"sft": {}, "rank": {"rewards": {"long": 1.0}}, "dpo": {}}
    made = make_project(tmp_path, tiny_llama, stages=stages)
    add_stage(made.run_dir, "dpo", tiny_llama)
    second = rounds.begin(made, 2)
    assert list(second.stages) == ["rank", "dpo"]
    assert second.data.preferences == made.data.preferences
    assert second.model.name_or_path == str(made.run_dir / "dpo")


def test_single_judgements_join_the_pairs_that_kto_takes_apart(tmp_path, tiny_llama):
    made = make_project(tmp_path, tiny_llama, stages={"sft": {}, "kto": {}}, rounds={"earlier": 0.5})
    add_stage(made.run_dir, "kto", tiny_llama)
    cast_votes(made.run_dir, [*PAIRS, ("Both bad?", " a", " b", "neither")])
    second = rounds.begin(made, 2)
    own, pairs, single = second.data.feedback.sources
    assert (own.weight, own.all_trained) == (0.5, False)
    assert (pairs.format, single.format) == ("preference", "kto")
    read = [record for record, side in iter_records(second, "feedback") if side == "train"]
    assert sum(isinstance(record, Feedback) for record in read) == 2
    assert sum(record.origin.startswith(pairs.source) for record in read) == len(PAIRS)


def test_a_weight_that_no_source_takes_is_refused_before_anything_is_frozen(project):
    cast_votes(project.run_dir, PAIRS)
    source = replace(project.data.preferences.sources[0], weight=2.0)
    data = replace(project.data, preferences=replace(project.data.preferences, sources=(source,)))
    heavy = replace(project, data=data, rounds=replace(project.rounds, earlier=600.0))
    with pytest.raises(UserError, match=r"rounds\.earlier: .* would have weight 1200"):
        rounds.begin(heavy, 2)
    assert not (project.run_dir / "round-2").exists()


def test_without_preferences_of_its_own_a_project_still_samples_for_its_own_prompts(tmp_path, tiny_llama):
    path = write_project(tmp_path, tiny_llama, stages={"sft": {}, "dpo": {}})
    made = load_project(path)
    made = replace(made, data=replace(made.data, preferences=None))
    add_stage(made.run_dir, "dpo", tiny_llama)
    cast_votes(made.run_dir, PAIRS)
    second = rounds.begin(made, 2)
    assert [source.all_trained for source in second.data.preferences.sources] == [True]
    assert second.data.rollouts == made.data.demonstrations


def test_a_refused_round_leaves_no_folder(project, monkeypatch):
    """Its votes are frozen anew once it begins."""
    cast_votes(project.run_dir, PAIRS)
    made = rounds.begin(project, 2)
    with pytest.raises(UserError):
        runner.run(made, only=["nonsense"], **SILENT)
    assert not made.run_dir.exists()


def test_processes_that_are_launched_are_told_their_round(project, monkeypatch, tmp_path):
    cast_votes(project.run_dir, PAIRS)
    made = rounds.begin(project, 2)
    commands = []

    class Launcher:
        def __init__(self, command, **options):
            commands.append(command)

        def wait(self, seconds):
            return 0

    monkeypatch.setattr(start.subprocess, "Popen", Launcher)
    with View() as shown:
        runner._accelerate(made, "dpo", "key", Launch(tmp_path / "ddp.yaml"), None, shown)
    place = commands[0].index("--round")
    assert commands[0][place : place + 4] == ["--round", "2", str(project.path), "dpo"]
    assert rounds.of_round(load_project(project.path), 2) == made


@pytest.mark.slow
def test_a_whole_second_round(tmp_path, tiny_llama):
    path = write_project(tmp_path, tiny_llama, rounds={"stages": ["dpo"], "votes": 2.0})
    project = load_project(path)
    runner.run(project, **SILENT)
    cast_votes(project.run_dir, PAIRS)
    runner.run(rounds.begin(project, 2), **SILENT)
    run_dir = project.run_dir / "round-2"
    assert find_run(f"{run_dir}:dpo") == (run_dir, "dpo")
    assert pick_stage(run_dir) == run_dir / "dpo"
    manifest = verify(run_dir / "dpo")
    assert manifest["lineage"]["base"] == str(tiny_llama)
    assert adapter_config(run_dir / "dpo")["r"] == adapter_config(project.run_dir / "dpo")["r"] + 4
    rows = json.loads((run_dir / "dpo" / "ledger.json").read_text())["sets"]["preferences"]
    assert rows["read"] == 52
    again = folder.project_of(run_dir)
    assert (again.round, again.run_dir) == (2, run_dir)
    assert [plan.reason for plan in runner.run(again, **SILENT)] == [None, None]
    record = read_manifest(run_dir / "evaluate")
    assert record["metrics"]["references"] == {"dpo": "base"}
    assert len(read_votes(project.run_dir)) == 12
