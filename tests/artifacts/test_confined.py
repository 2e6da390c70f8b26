"""What is read, written, hashed and published as a run's lies in the run's folder."""

import os
import shutil

import pytest

from rlhf.artifacts.confined import check_confined
from rlhf.artifacts.manifest import verify
from rlhf.artifacts.open import open_model
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.pipeline import folder
from rlhf.pipeline.identity import base_fingerprint
from rlhf.pipeline.runs import find_run, pick_stage
from rlhf.publish.build import build_folder
from tests.support.projects import make_project
from tests.support.runs import tiny_run

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_llama):
    return tiny_run(tmp_path_factory.mktemp("made"), tiny_llama)[0]


@pytest.fixture
def run_dir(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs/tiny")


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "home").mkdir()
    file = tmp_path / "home/id_rsa"
    file.write_text(SECRET)
    return file


LINKS = [
    "sft/model-00009.safetensors", "sft/vocab.txt", "sft/config.json", ".dpo.partial/metrics.jsonl", "report.html",
    "project.json", ".lock", "judges/careful/answers.jsonl", "arena/arena.sqlite", "published/sft/README.md",
    "round-2/round.json", ".ppo.partial/checkpoints/checkpoint-1/model.safetensors", "sft-traceback.txt",
]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_link_to_a_file_outside_is_refused_by_every_way_in(run_dir, outside, tmp_path, tiny_llama, name):
    link = run_dir / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    project = make_project(tmp_path, tiny_llama)
    ways = [
        lambda: find_run(str(run_dir)),
        lambda: folder.locked(project).__enter__(),
        lambda: build_folder(run_dir, "sft", tmp_path / "out"),
        *([lambda: verify(run_dir / "sft")] if name.startswith("sft/") else []),
        *([lambda: folder.project_of(run_dir)] if name != "project.json" else []),
    ]
    for way in ways:
        with pytest.raises(UserError, match=r"a link that leads outside, to .*id_rsa") as caught:
            way()
        assert str(link) in str(caught.value)
    assert outside.read_text() == SECRET
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["sft", ".dpo.partial", "published", "round-2", "arena"])
def test_a_folder_that_is_a_link_is_refused(run_dir, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(run_dir / name, ignore_errors=True)
    (run_dir / name).symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(UserError, match="leads outside"):
        find_run(str(run_dir))


def test_what_would_be_made_outside_or_never_ends_is_refused(run_dir, tmp_path):
    (run_dir / "sft/new.json").symlink_to(tmp_path / "authorized_keys")
    with pytest.raises(UserError, match="leads nowhere"):
        check_confined(run_dir)
    (run_dir / "sft/new.json").unlink()
    (run_dir / "sft/around").symlink_to("around")
    with pytest.raises(UserError, match=r"around: "):
        check_confined(run_dir)
    (run_dir / "sft/around").unlink()
    os.mkfifo(run_dir / ".lock")
    with pytest.raises(UserError, match=r"\.lock: neither a file nor a folder"):
        check_confined(run_dir)


def test_links_within_a_run_and_a_run_that_is_a_link_are_fine(run_dir, tmp_path):
    (run_dir / "latest").symlink_to("sft", target_is_directory=True)
    (run_dir / "sft/copy.txt").symlink_to("../dpo/stage.json")
    check_confined(run_dir)
    (tmp_path / "runs/linked").symlink_to(run_dir, target_is_directory=True)
    check_confined(tmp_path / "runs/linked")
    check_confined(tmp_path / "nothing")


@pytest.mark.parametrize("stage", ["../outside", "..", "/etc", "sft/../sft", "sft/.", ""])
def test_a_stage_is_named_and_no_path(run_dir, stage):
    shutil.copytree(run_dir / "sft", run_dir.parent / "outside")
    with pytest.raises(UserError, match="no stage"):
        pick_stage(run_dir, stage)


def test_a_base_model_may_lie_anywhere_and_consist_of_links(tmp_path, tiny_llama):
    """As in the hub's cache, whose snapshots are links to blobs."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    blobs.mkdir()
    snapshot.mkdir()
    for number, file in enumerate(sorted(tiny_llama.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../blobs/{number}")
    project = make_project(tmp_path, snapshot)
    assert base_fingerprint(project.model, project) == base_fingerprint(ModelConfig(str(tiny_llama)), project)
    assert open_model(project.model).policy(placed=False).num_parameters() > 0


def test_a_config_that_lies_in_the_run_is_not_read(run_dir, tmp_path, tiny_llama):
    """A run that somebody else made brings no code along."""
    make_project(tmp_path, tiny_llama)
    (tmp_path / "project.yaml").rename(run_dir / "project.yaml")
    for config in ("project.yaml", "../tiny/project.yaml", str(run_dir / "project.yaml")):
        (run_dir / "project.json").write_text(f'{{"config": "{config}", "name": "tiny", "overrides": []}}')
        with pytest.raises(UserError, match="lies in the run itself"):
            folder.project_of(run_dir)


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", "a/b", "a\\0b", "", ".hidden", "a\nb", "~"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path, tiny_llama, name):
    for sections in ({"name": name}, {"rewards": {name: {"function": "judge.py:score"}}}, {"stages": {name: {}}}):
        with pytest.raises(UserError):
            make_project(tmp_path, tiny_llama, **sections)
