"""Whatever is raised becomes one line with its traceback in a file; who can mend it decides the exit code."""

import json
import re
import sqlite3
import tempfile
from pathlib import Path

import pytest
import torch

from rlhf.errors import Defect, UserError
from rlhf.failure import explained
from rlhf.pipeline.execute import attempt, run_stage
from rlhf.pipeline.stage import guarded
from tests.support.projects import make_project


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def line_of(action, kind=UserError, settings=None, folder=None) -> str:
    with pytest.raises(kind) as caught, explained("demo.yaml: stages.dpo", settings, folder):
        action()
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("demo.yaml: stages.dpo")
    return line


def trace_in(line: str) -> str:
    return Path(re.search(r"the traceback is in ([^ )]+)", line).group(1)).read_text()


def long(message):
    raise ValueError(message)


def test_what_a_library_raises_is_the_users_and_names_the_library(tmp_path):
    line = line_of(lambda: torch.nn.Linear(2, 2)(torch.zeros(3)), folder=tmp_path)
    assert ": torch: " in line
    assert "F.linear" in trace_in(line)
    assert str(tmp_path / "stages-dpo-traceback.txt") in line


def test_what_our_code_raises_is_a_defect(tmp_path):
    def ours():
        from rlhf.data.splits import copies

        copies("no bytes", 0.5, 0)

    line = line_of(ours, Defect, folder=tmp_path)
    assert line.partition("stages.dpo: ")[2].startswith("AttributeError: ")
    assert "report it" in line
    assert "copies" in trace_in(line)


def test_what_pythons_library_raises_belongs_to_its_caller():
    from rlhf.artifacts.hashing import sha256_file

    assert "report it" in line_of(lambda: sha256_file(5), Defect)
    assert __file__ in line_of(lambda: json.loads("{"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        RuntimeError("[enforce fail] . No space left on device"),  # torch, safetensors
        sqlite3.OperationalError("database or disk is full"),  # a log of evaluations
    ],
)
def test_a_full_disk_is_no_defect_of_ours(error):
    with pytest.raises(UserError, match=r"^here: the disk is full; "), explained("here"):
        raise error


@pytest.mark.parametrize("message", ["out of memory", "DefaultCPUAllocator: can't allocate memory: you tried to"])
def test_memory_gets_advice(message):
    assert "per_device_train_batch_size" in line_of(lambda: long(message))


def test_an_error_of_the_system_names_the_file(tmp_path):
    assert "none.txt: no such file or directory" in line_of((tmp_path / "none.txt").read_text)


@pytest.mark.parametrize(
    ("message", "settings", "words"),
    [
        ("You passed `sync_ref_model=True`", {"sync_ref_model": True, "beta": 0.1}, "stages.dpo.sync_ref_model: "),
        ("TensorBoardCallback is not there", {"report_to": ["tensorboard"], "beta": 0.1}, "stages.dpo.report_to: "),
        ("nothing of use", {"beta": 0.1, "adapter.r": 4}, "(it sets beta, adapter.r)"),
        ("beta and report_to", {"beta": 0.1, "report_to": "x", "seeds": 1}, "(it sets beta, report_to)"),
        ("first line\nsecond\n\nfar below", {}, "first line second (ValueError)"),
        ("x" * 5000, {}, "x…"),
        ("", {}, "ValueError"),
    ],
)
def test_the_settings_that_a_message_speaks_of_are_named(message, settings, words):
    line = line_of(lambda: long(message), settings=settings)
    assert words in line
    assert len(line) < 700


def test_a_line_stays_a_line():
    def known():
        raise UserError("as it is")

    with pytest.raises(UserError, match=r"^as it is$"), explained("demo.yaml"):
        known()


def test_no_file_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "tempfile.mkstemp", lambda **_: long("never") if False else (_ for _ in ()).throw(OSError("full"))
    )
    assert "could not be written" in line_of(lambda: long("x"), folder=tmp_path / "nowhere")


def test_exit_codes(capfd):
    def known():
        raise UserError("as it is")

    def ours():
        from rlhf.data.splits import copies

        copies("no bytes", 0.5, 0)

    assert [guarded(action) for action in (lambda: None, known, lambda: long("x"), ours)] == [0, 2, 2, 1]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


def test_a_stage_that_breaks_leaves_its_traceback_in_the_runs_folder(tmp_path, tiny_llama, monkeypatch):
    project = make_project(tmp_path, tiny_llama, stages={"sft": {"max_steps": 1, "gradient_checkpointing": True}})
    import trl

    def broken(*_, **__):
        exec(compile("raise RuntimeError('gradient_checkpointing is broken')", "/x/site-packages/y.py", "exec"),
             {"__name__": "trl.trainer"})  # fmt: skip

    monkeypatch.setattr(trl.SFTTrainer, "train", broken)
    project.run_dir.mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        attempt(run_stage, project, "sft")
    assert "stages.sft.gradient_checkpointing: trl: gradient_checkpointing is broken" in str(caught.value)
    assert "RuntimeError" in (project.run_dir / "stages-sft-traceback.txt").read_text()
    assert not (project.run_dir / "sft").exists()
    attempt(lambda project, name: None, project, "sft")
    assert list(project.run_dir.glob("*.txt")), "preparing leaves what a stage's attempt said"
    with explained("stages.sft", folder=project.run_dir):
        pass
    assert not list(project.run_dir.glob("*.txt")), "the next attempt begins without"
