"""Where a stage writes until it is done, and what becomes of that when it is killed."""

import dataclasses
import json
import os
import shutil

import pytest

from rlhf.artifacts.manifest import artifact_hash, finished_stages, is_finished, read_manifest, verify
from rlhf.config.load import load_project
from rlhf.pipeline import execute, folder, identity, partial, runner
from rlhf.workflow import stage_of
from tests.support.kill import at_every_change
from tests.support.projects import make_project


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path, tmp_path)


NOW = {"torch": "2", "rlhf": "1"}


@pytest.fixture
def begun(project):
    """A stage that was interrupted after a checkpoint."""
    directory = folder.partial_dir(project, "sft")
    assert partial.claim(directory, {"trainer": {"beta": 1}, "processes": 2}, NOW) == [NOW]
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints/weights").write_text("hours")
    (directory / "data").mkdir()
    return directory


@pytest.mark.parametrize(
    ("beginning", "changed"),
    [
        ({"trainer": {"beta": 2}, "processes": 2}, "trainer.beta"),
        ({"trainer": {"beta": 1}, "processes": 1}, "processes"),
    ],
)
def test_what_cannot_go_on_is_kept_and_comes_back_when_the_change_does(begun, beginning, changed, capsys):
    partial.claim(begun, beginning, NOW)
    aside = begun.with_name(".sft.set-aside-1")
    said = capsys.readouterr().err
    assert f"(changed: {changed})" in said
    assert f"rm -r {aside}" in said
    assert said.count("\n") == 1
    assert (aside / "checkpoints/weights").read_text() == "hours"
    assert sorted(path.name for path in begun.iterdir()) == ["data", partial.IDENTITY]
    (begun / "metrics.jsonl").write_text("minutes")
    partial.claim(begun, {"trainer": {"beta": 1}, "processes": 2}, NOW)
    assert (begun / "checkpoints/weights").read_text() == "hours"
    assert not aside.exists()
    assert (begun.with_name(".sft.set-aside-2") / "metrics.jsonl").read_text() == "minutes"


@pytest.mark.parametrize("noted", ['{"trainer": {"beta": 1}, "package": "1"}', None])
def test_work_that_nobody_knows_the_beginning_of_is_not_gone_on_with(begun, noted, capsys):
    (begun / partial.IDENTITY).unlink()
    if noted is not None:
        (begun / partial.IDENTITY).write_text(noted)
    beginning = {"trainer": {"beta": 1}, "processes": 2}
    assert partial.claim(begun, beginning, NOW) == [NOW]
    assert (begun.with_name(".sft.set-aside-1") / "checkpoints/weights").read_text() == "hours"
    assert sorted(path.name for path in begun.iterdir()) == ["data", partial.IDENTITY]
    assert f"(changed: the form of {partial.IDENTITY})" in capsys.readouterr().err


def test_the_empty_folder_of_a_trainer_that_was_only_tried_is_no_work(project, capsys):
    directory = folder.partial_dir(project, "sft")
    (directory / "checkpoints").mkdir(parents=True)
    assert partial.interrupted(project, "sft") is None
    partial.claim(directory, {"seed": 0}, NOW)
    assert [path.name for path in project.run_dir.iterdir()] == [".sft.partial"]
    assert capsys.readouterr().err == ""


def test_an_upgrade_lets_a_stage_go_on_and_is_recorded(begun, capsys):
    later = {"torch": "3", "rlhf": "1"}
    assert partial.claim(begun, {"trainer": {"beta": 1}, "processes": 2}, later) == [NOW, later]
    assert "torch 2 (now 3)" in capsys.readouterr().err
    assert (begun / "checkpoints/weights").read_text() == "hours"
    assert partial.claim(begun, {"trainer": {"beta": 1}, "processes": 2}, later) == [NOW, later]
    assert capsys.readouterr().err == ""


def test_a_plan_says_what_keeps_an_interrupted_stage_from_going_on(project):
    directory = folder.partial_dir(project, "sft")
    partial.claim(directory, identity.beginning(project, "sft", identity.identity(project, "sft"), 1), NOW)
    (directory / "metrics.jsonl").touch()
    assert runner.plan(project, only=["sft"])[0].reason == "not done yet"
    changed = load_project(project.path, ["stages.sft.learning_rate=0.5"])
    reason = runner.plan(changed, only=["sft"])[0].reason
    assert reason.startswith("not done yet; ")
    assert reason.endswith(": trainer.learning_rate")
    (directory / partial.IDENTITY).write_text('{"package": "1"}')
    assert partial.IDENTITY in runner.plan(project, only=["sft"])[0].reason


@pytest.fixture
def trained(monkeypatch):
    """The seeds that the stage sft has trained with: here it writes its data, a checkpoint and its weights at once."""
    seeds = []

    def run(context):
        seeds.append(context.project.seed)
        for name, content in {"data/ledger.json": "{}", "checkpoints/weights": "hours"}.items():
            (context.directory / name).parent.mkdir(exist_ok=True)
            (context.directory / name).write_text(content)
        (context.directory / "model.safetensors").write_text(f"weights of seed {context.project.seed}")
        return {}

    monkeypatch.setattr(execute, "git_sha", lambda folder: None)
    monkeypatch.setattr(execute, "versions", lambda: NOW)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(execute, "stage_of", lambda name: dataclasses.replace(stage_of(name), run=run))
    return seeds


@pytest.mark.parametrize("planned", [True, False], ids=["a run", "a recipe"])
@pytest.mark.parametrize("again", [False, True], ids=["for the first time", "in place of another"])
def test_a_stage_that_is_killed_on_its_way_into_its_place_is_not_trained_again(project, trained, planned, again):
    other = load_project(project.path, ["seed=1"])
    final = project.run_dir / "sft"

    def reset():
        shutil.rmtree(project.run_dir, ignore_errors=True)
        if again:
            execute.run_stage(other, "sft")
        trained.clear()

    reset()
    execute.run_stage(project, "sft")
    whole = artifact_hash(final)
    for where in at_every_change(project.run_dir, reset, lambda: execute.run_stage(project, "sft")):
        was_done = is_finished(folder.partial_dir(project, "sft")) or (
            planned and final.exists() and read_manifest(final)["identity"]["seed"] == 0
        )
        standing = [f for f in (final, final.with_name(".sft.old")) if read_manifest(f) is not None]
        assert standing or was_done or not again, where
        assert set(finished_stages(project.run_dir)) <= {"sft"}
        before = len(trained)
        if planned:
            partial.settle(project, "sft")
            assert (runner.plan(project, only=["sft"])[0].reason is None) == was_done, where
        if not planned or not was_done:
            execute.run_stage(project, "sft")
        assert len(trained) == before + (not was_done), where
        assert verify(final)["artifact"] == whole
        kept = {path.name for path in final.iterdir()}
        assert kept == {"checkpoints", "ledger.json", "model.safetensors", "stage.json"}, where
        assert json.loads((final / "ledger.json").read_text()) == {}
        assert {path.name for path in project.run_dir.iterdir()} == {"project.json", "sft"}, where


def test_what_stood_in_its_place_comes_back_where_the_new_one_is_no_longer_wanted(project, trained):
    other = load_project(project.path, ["seed=1"])
    final = project.run_dir / "sft"

    def reset():
        shutil.rmtree(project.run_dir, ignore_errors=True)
        execute.run_stage(other, "sft")

    reset()
    before = artifact_hash(final)
    for where in at_every_change(project.run_dir, reset, lambda: execute.run_stage(project, "sft")):
        partial.settle(other, "sft")
        assert verify(final)["artifact"] in (before, artifact_hash(final)), where
        if (project.run_dir / ".sft.partial").exists():
            assert artifact_hash(final) == before, where


def test_what_is_set_aside_is_not_lost_where_that_is_interrupted(begun):
    aside, original = begun.with_name(".sft.set-aside-1"), begun.with_name("kept")
    shutil.copytree(begun, original)
    beginning = {"trainer": {"beta": 1}, "processes": 2}

    def reset():
        for each in begun.parent.glob(".sft*"):
            shutil.rmtree(each)
        shutil.copytree(original, begun)

    def there_and_back():
        partial.claim(begun, {"trainer": {"beta": 2}}, NOW)
        partial.claim(begun, beginning, NOW)

    for where in at_every_change(begun.parent, reset, there_and_back):
        begun.mkdir(exist_ok=True)
        partial.claim(begun, beginning, NOW)
        assert (begun / "checkpoints/weights").read_text() == "hours", where
        assert not aside.exists(), where


def test_a_damaged_note_of_the_beginning_is_one_that_nobody_knows(begun):
    (begun / partial.IDENTITY).write_text("")
    assert partial.claim(begun, {"trainer": {"beta": 1}, "processes": 2}, NOW) == [NOW]
    assert (begun.with_name(".sft.set-aside-1") / "checkpoints/weights").read_text() == "hours"
