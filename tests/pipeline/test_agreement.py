"""Processes of one stage that were given different settings: none of them trains."""

import os
import subprocess
import sys

import pytest

from rlhf.config.load import load_project
from rlhf.pipeline.agreement import difference, settings
from rlhf.pipeline.identity import identity
from tests.support.launches import on_two_processes
from tests.support.projects import make_project, write_project

SFT = {"max_steps": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 2}


def test_the_first_setting_that_differs_is_named_with_both_values(tmp_path, tiny_llama, monkeypatch):
    def of(folder, **changed):
        project = make_project(tmp_path / folder, tiny_llama, stages={"sft": SFT | changed})
        return settings(project, "sft", identity(project, "sft"))

    main = of("main")
    assert difference(main, of("copy")) is None
    assert difference(main, of("rate", learning_rate=1e-4)) == (
        "stages.sft.learning_rate is 0.0001, and 0.01 on the main process"
    )
    assert difference(main, of("saves", save_steps=7)) == "stages.sft.save_steps is 7, and not set on the main process"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert difference(main, of("launch")) == (
        'environment.ACCELERATE_MIXED_PRECISION is "bf16", and not set on the main process'
    )


def stages_of(path, *words):
    """Exit codes and lines of errors of a stage on two processes, of which the second has words of its own."""
    codes, said = on_two_processes(["-m", "rlhf.pipeline.stage", path, "sft"], ((), words))
    return codes, said.splitlines()


@pytest.mark.slow
def test_processes_with_different_settings_do_not_train(tmp_path, tiny_llama):
    path = write_project(tmp_path, tiny_llama, stages={"sft": SFT})
    codes, said = stages_of(path, "stages.sft.learning_rate=0.0001")
    assert codes == [2, 2]
    (line,) = said
    assert line.startswith(
        "error: process 1 of 2: stages.sft.learning_rate is 0.0001, and 0.01 on the main process; all processes need "
    )
    assert not [*load_project(path).run_dir.glob("*sft*")]


def test_fewer_processes_than_the_launch_file_promised_do_not_train(tmp_path, tiny_llama):
    path = write_project(tmp_path, tiny_llama, stages={"sft": SFT})
    command = [sys.executable, "-m", "rlhf.pipeline.stage", "--processes", "2", str(path), "sft"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    said = "error: accelerate started 1 of 2 processes; see its config's num_processes"
    assert (done.returncode, done.stderr.splitlines()) == (2, [said])
