"""The states of stages, as plan, folders and locks have them."""

import fcntl
import json

import pytest
import yaml
from rich.console import Console

from rlhf.errors import UserError
from rlhf.history.listing import list_runs, runs_table
from rlhf.history.state import state_of
from rlhf.pipeline import identity
from rlhf.pipeline.execute import attempt, run_stage
from rlhf.pipeline.folder import LOCK, own_folder, partial_dir
from rlhf.pipeline.partial import claim, failure, note_failure
from rlhf.workflow import parents_of, planned, stage_of
from tests.support.manifests import finish
from tests.support.projects import make_project
from tests.support.reports import fake_run


@pytest.fixture
def project(tmp_path, tiny_llama):
    """A project whose stages are all finished, by their records."""
    made = make_project(tmp_path, tiny_llama)
    own_folder(made)
    for name in planned(made):
        metrics = {"passed": True} if stage_of(name).leaves == "verdict" else {}
        parts = identity.as_recorded(identity.identity(made, name))
        parents = {parent: parts["parents"][parent] for parent in parents_of(made, name)}
        finish(made.run_dir / name, identity=parts, parents=parents, metrics=metrics)
    return made


def states(project) -> dict[str, str]:
    return {stage["stage"]: stage["state"] for stage in state_of(project.run_dir)["stages"]}


def test_what_is_finished_is_done_until_a_setting_changes(project):
    assert states(project) == dict.fromkeys(planned(project), "done")
    tree = yaml.safe_load(project.path.read_text())
    tree["stages"]["dpo"]["beta"] = 0.7
    project.path.write_text(yaml.safe_dump(tree))
    state = state_of(project.run_dir)
    why = {stage["stage"]: stage["why"] for stage in state["stages"] if stage["state"] == "stale"}
    assert why == {"dpo": "changed: trainer.beta", "evaluate": "dpo runs again"}
    assert state["problem"] is state["note"] is None
    assert state["changed"] is not None
    assert state["bytes"] > 1000


def test_what_has_begun_and_not_ended(project):
    (project.run_dir / "dpo/stage.json").unlink()
    assert states(project)["dpo"] == "not begun"
    partial = partial_dir(project, "dpo")
    (partial / "data").mkdir(parents=True)
    assert states(project)["dpo"] == "not begun"  # its data was prepared, no more
    for step in (9, 12):
        (partial / f"checkpoints/checkpoint-{step}").mkdir(parents=True)
    dpo = next(stage for stage in state_of(project.run_dir)["stages"] if stage["stage"] == "dpo")
    assert dpo == {"stage": "dpo", "state": "interrupted", "why": "checkpoint of step 12"}
    with (project.run_dir / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert states(project)["dpo"] == "running"
    (partial / "incident.json").write_text("{}")  # of steps that were skipped
    assert states(project)["dpo"] == "interrupted"
    note_failure(partial, "the reward function broke")
    note_failure(partial, "another process ended with it")
    dpo = next(stage for stage in state_of(project.run_dir)["stages"] if stage["stage"] == "dpo")
    assert dpo == {"stage": "dpo", "state": "failed", "why": "the reward function broke; checkpoint of step 12"}


def test_a_stage_that_fails_notes_why_until_it_begins_again(project):
    partial = partial_dir(project, "dpo")
    partial.mkdir()
    (project.run_dir / "sft/stage.json").write_text("{")  # so that what dpo starts from cannot be read
    (project.run_dir / "dpo/stage.json").unlink()
    with pytest.raises(UserError) as caught:
        attempt(run_stage, project, "dpo")
    assert failure(partial) == str(caught.value)
    claim(partial, {}, {})
    assert failure(partial) is None


def test_a_shut_gate(project):
    finish(project.run_dir / "gate", leaves="verdict", metrics={"passed": False})
    project.path.unlink()
    state = state_of(project.run_dir)
    assert {stage["stage"]: stage["state"] for stage in state["stages"]}["gate"] == "shut"
    assert "which is not there" in state["note"]


DAMAGE = {
    "no JSON": lambda run: (run / "sft/stage.json").write_text("{"),
    "a list": lambda run: (run / "sft/stage.json").write_text("[]"),
    "a field gone": lambda run: (run / "sft/stage.json").write_text('{"stage": "sft"}'),
    "metrics of another type": lambda run: (run / "dpo/stage.json").write_text(
        json.dumps({**json.loads((run / "sft/stage.json").read_text()), "metrics": [], "leaves": "verdict"})
    ),
    "a report without comparisons": lambda run: (run / "report.json").write_text("{}"),
    "comparisons of another type": lambda run: (run / "report.json").write_text('{"comparisons": [1]}'),
    "a link that leads outside": lambda run: (run / "out").symlink_to("/etc"),
    "bytes": lambda run: (run / "dpo/stage.json").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_a_line_and_hides_no_other(tmp_path, damage):
    for name in ("first", "second"):
        fake_run(tmp_path / name, ("sft", "dpo"))
    DAMAGE[damage](tmp_path / "first")
    runs = {run["name"]: run for run in list_runs(tmp_path)}
    assert runs["first"]["problem"]
    assert "\n" not in runs["first"]["problem"]
    assert runs["second"]["problem"] is None
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(runs_table(list(runs.values())))
    text = console.export_text()
    assert f"first: {runs['first']['problem']}" in text
    assert "done: sft, dpo" in text


def test_rounds_are_runs_of_their_own_and_the_last_to_change_comes_first(tmp_path):
    fake_run(tmp_path / "old", ("sft",))
    fake_run(tmp_path / "old/round-2", ("dpo",))
    (tmp_path / "old/round-2/round.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert {run["name"] for run in list_runs(tmp_path)} == {"old", "old/round-2"}
    assert [run["name"] for run in list_runs(tmp_path / "old")] == [run["name"] for run in list_runs(tmp_path)]


def test_what_is_no_folder_of_runs(tmp_path):
    (tmp_path / "file").touch()
    for folder, message in (("gone", "no such folder"), ("file", "is a file"), (".", "no run is in it")):
        with pytest.raises(UserError, match=message):
            list_runs(tmp_path / folder)
