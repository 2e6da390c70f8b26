import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.pipeline.runs import find_run, finished_stages, pick_stage
from tests.support import manifests


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run `quick` in ./runs with finished sft, reward and evaluate, of ./quick.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.yaml").write_text("name: quick\nmodel: {name_or_path: base}\n", encoding="utf-8")
    folder = Path("runs/quick")
    for stage in ("sft", "reward", "evaluate"):
        finish(folder / stage)
    (folder / "project.json").write_text('{"config": "../../quick.yaml"}', encoding="utf-8")
    return folder


def finish(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    manifests.finish(folder)


@pytest.mark.parametrize("spec", ["quick", "runs/quick", "runs/quick/", "quick.yaml"])
def test_a_run_is_found_by_name_folder_and_yaml_with_and_without_a_stage(run_dir, spec):
    assert find_run(spec) == (run_dir, None)
    assert find_run(f"{spec}:sft") == (run_dir, "sft")
    assert find_run(f"{spec}:") == (run_dir, None)


def test_a_stages_own_folder_names_both(run_dir):
    assert find_run("runs/quick/sft") == (run_dir, "sft")
    assert find_run(str(run_dir.resolve())) == (run_dir.resolve(), None)


def test_a_run_that_is_not_there_is_told_with_the_nearest_name(run_dir):
    with pytest.raises(UserError, match=r"^quik: no such run; did you mean 'quick'\?"):
        find_run("quik")
    with pytest.raises(UserError, match=r"^quik: no such run; did you mean 'quick'\?"):
        find_run("quik:dpo")
    with pytest.raises(UserError, match=r"^quick: no such run \(elsewhere holds none\)"):
        find_run("quick", "elsewhere")
    Path("data").mkdir()
    with pytest.raises(UserError, match=r"^data: is a folder, but no run"):
        find_run("data")
    Path("new.yaml").write_text("name: new\nmodel: {name_or_path: base}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^new.yaml: has not run yet"):
        find_run("new.yaml")


def test_the_last_finished_policy_is_picked(run_dir):
    assert finished_stages(run_dir) == ["sft", "reward"]
    assert pick_stage(run_dir) == run_dir / "sft"
    finish(run_dir / "dpo")
    assert pick_stage(run_dir) == run_dir / "dpo"
    assert pick_stage(run_dir, "sft") == run_dir / "sft"
    assert pick_stage(run_dir, "reward", policies_only=False) == run_dir / "reward"
    assert pick_stage(run_dir, policies_only=False) == run_dir / "dpo"


@pytest.mark.parametrize(
    ("stage", "message"),
    [("dop", "no stage 'dop'; did you mean 'dpo'"), ("evaluate", "evaluate leaves no model; there is sft"),
     ("dpo", "dpo is not finished; there is sft"), ("reward", "reward is no policy, it cannot reply; there is sft")],
)  # fmt: skip
def test_a_stage_that_cannot_be_picked_is_refused(run_dir, stage, message):
    with pytest.raises(UserError, match=message):
        pick_stage(run_dir, stage)


def test_nothing_finished_and_changed_files_are_refused(run_dir, tmp_path):
    (run_dir / "sft" / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="the model's files changed"):
        pick_stage(run_dir)
    (run_dir / "sft" / "stage.json").unlink()
    with pytest.raises(UserError, match="no finished policy yet; there is reward"):
        pick_stage(run_dir)


def test_finding_a_run_imports_nothing_heavy():
    script = "import sys, rlhf.pipeline.runs; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
