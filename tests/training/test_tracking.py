"""Where stages report to: one place for a run, nothing unless asked, and nothing left open."""

import json
import os
import sys

import pytest

from rlhf.config.load import load_project
from rlhf.errors import UserError
from rlhf.pipeline import identity
from rlhf.pipeline.execute import prepare_stage, run_stage
from rlhf.pipeline.folder import own_folder
from rlhf.training import tracking
from rlhf.workflow import StageContext
from tests.support.projects import write_project


@pytest.fixture
def path(tmp_path, tiny_llama):
    return write_project(
        tmp_path, tiny_llama, stages={"sft": {"max_steps": 2, "logging_steps": 1}},
        evaluate={"prompts": 6, "samples": 1, "max_new_tokens": 4},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What a stage's own process would set."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def context(project, name="sft"):
    return StageContext(project, name, project.run_dir / f".{name}.partial", {})


def test_nothing_is_reported_unless_asked(path):
    project = load_project(path)
    assert tracking.reporters(project, "sft") == []
    assert tracking.trainer_fields(project, "sft") == {"report_to": "none"}
    with tracking.reporting(context(project)):
        tracking.finished(context(project), lambda: pytest.fail("nobody asked"))
    assert not (project.run_dir / tracking.LOGS).exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["report_to=tensorboard"], ["tensorboard"]),
        (["report_to=[tensorboard,wandb]"], ["tensorboard", "wandb"]),
        (["report_to=tensorboard", "stages.sft.report_to=none"], []),
        (["stages.sft.report_to=[wandb]"], ["wandb"]),
    ],
)
def test_a_stage_reports_where_it_says_itself_else_where_the_project_does(path, given, expected):
    project = load_project(path, given)
    assert tracking.reporters(project, "sft") == expected


def test_a_word_that_is_no_reporter_is_refused(path):
    with pytest.raises(UserError, match=r"report_to: .*wandb"):
        load_project(path, ["report_to=[wandbb]"])


def test_a_reporter_that_is_not_installed_is_known_before_anything_trains(path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda module: None)
    project = load_project(path, ["report_to=trackio"])
    with pytest.raises(UserError, match=r"report_to: trackio is not installed: pip install trackio"):
        prepare_stage(project, "sft")


def test_where_a_stage_reports_decides_nothing_of_it(path):
    before, after = load_project(path), load_project(path, ["report_to=tensorboard", "stages.sft.report_to=wandb"])
    assert identity.identity(before, "sft") == identity.identity(after, "sft")
    assert identity.beginning(before, "sft", identity.identity(before, "sft"), 1) == (
        identity.beginning(after, "sft", identity.identity(after, "sft"), 1)
    )


def scalars(folder):
    """The last value of each scalar of TensorBoard's files in a folder."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}


def test_stages_stand_side_by_side_with_what_they_log_and_measure(path, tiny_llama):
    project = load_project(path, ["report_to=tensorboard"])
    own_folder(project)
    run_stage(project, "sft")
    os.environ.pop("TENSORBOARD_LOGGING_DIR")
    run_stage(project, "evaluate")
    logs = project.run_dir / tracking.LOGS
    assert sorted(folder.name for folder in logs.iterdir()) == ["evaluate", "sft"]
    trained, compared = scalars(logs / "sft"), scalars(logs / "evaluate")
    metrics = json.loads((project.run_dir / "sft" / "stage.json").read_text())["metrics"]
    assert trained["final/loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert "train/loss" in trained
    assert {"final/comparisons/sft vs base/long/mean_difference", "final/policies/sft/length/mean"} <= compared.keys()


def test_a_training_from_the_start_leaves_the_curves_of_the_one_before_alone(path):
    project = load_project(path, ["report_to=tensorboard"])
    folder = project.run_dir / tracking.LOGS / "sft"
    folder.mkdir(parents=True)
    (folder / "events").touch()
    assert tracking._event_folder(context(project)) == folder
    assert [file.parent.name for file in folder.parent.rglob("events")] == ["sft.1"]
    folder.mkdir()
    (folder / "events").touch()
    (project.run_dir / ".sft.partial" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    assert tracking._event_folder(context(project)) == folder
    assert (folder / "events").is_file(), "it goes on"


def test_wandb_gets_a_run_a_stage_grouped_by_the_run_and_closed(path, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    project = load_project(path, ["report_to=wandb"])
    own_folder(project)
    seen = {}
    finish = wandb.finish

    def watched(**options):
        seen.update(
            group=wandb.run.group, kind=wandb.run.job_type, name=wandb.run.name, summary=dict(wandb.run.summary)
        )
        finish(**options)

    monkeypatch.setattr(wandb, "finish", watched)
    run_stage(project, "sft")
    assert wandb.run is None
    assert (seen["group"], seen["kind"], seen["name"]) == ("tiny", "sft", "tiny/sft")
    assert {"train/loss", "final/loss"} <= seen["summary"].keys()
    assert list((project.run_dir / tracking.LOGS / "wandb").glob("offline-run-*/*.wandb"))


def test_an_interrupted_training_goes_on_in_the_same_wandb_run(path):
    project = load_project(path)
    (project.run_dir / tracking.LOGS).mkdir(parents=True)
    first = tracking._run_id(context(project))
    assert tracking._run_id(context(project)) != first, "one from the start is another"
    latest = tracking._run_id(context(project))
    (project.run_dir / ".sft.partial" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    assert tracking._run_id(context(project)) == latest


def test_trackio_gets_a_project_with_a_run_a_stage(path, monkeypatch):
    """The package needs newer libraries than are pinned here; what it is called with is its contract."""
    calls = []

    class Trackio:
        @staticmethod
        def init(**options):
            calls.append(("init", options))

        @staticmethod
        def log(values):
            calls.append(("log", values))

        @staticmethod
        def finish():
            calls.append(("finish", {}))

    monkeypatch.setitem(sys.modules, "trackio", Trackio)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda module: object())
    project = load_project(path, ["report_to=trackio"])
    assert tracking.trainer_fields(project, "sft") == {"report_to": ["trackio"], "project": "tiny", "run_name": "sft"}
    tracking.finished(context(project, "evaluate"), lambda: {"n": 3, "text": "x", "inner": {"nan": float("nan")}})
    assert calls == [
        ("init", {"project": "tiny", "name": "evaluate", "resume": "allow"}), ("log", {"final/n": 3.0}), ("finish", {})
    ]  # fmt: skip


def test_only_finite_numbers_are_reported():
    value = {"a": 1, "b": {"c": 0.5, "d": None, "e": [1, 2], "f": float("inf")}, "g": True, "h": "text"}
    assert dict(tracking.flat(value, "final")) == {"final/a": 1.0, "final/b/c": 0.5, "final/g": 1.0}
