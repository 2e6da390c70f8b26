"""What `rlhf check` prints of memory and time, and which machine it answers for."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.pipeline import runner
from rlhf.pipeline.launch_file import Launch
from rlhf.preflight import Machine, StageEstimate
from rlhf.preflight.command import Asked, Preflight, as_json, duration, engine_of, look, tables
from rlhf.preflight.estimates import Change
from tests.support.projects import make_project

GPU = Machine("GPU", "gpu", 2e9, 1e12)
TIGHT = StageEstimate(
    "dpo", "training", {"weights": 2e9, "logits": 0.5e9, "adapters": 1e6}, 2e9, (100.0, 200.0, 400.0),
    change=Change("per_device_train_batch_size: 2", 1.9e9),
)  # fmt: skip


def printed(found):
    console = Console(width=160)
    with console.capture() as capture:
        console.print(tables(found))
    return capture.get()


def test_a_stage_that_does_not_fit_is_told_what_to_set():
    text = printed(Preflight(GPU, [TIGHT], {"kto": "no such thing"}))
    assert "2.50 of 2.00" in text
    assert "first set per_device_train_batch_size: 2 (→ 1.90 GB)" in text
    assert "not enough" not in text
    assert "kto: not estimated: no such thing" in text


def test_json_has_bytes():
    (stage,) = as_json(Preflight(GPU, [TIGHT], {}))["stages"]
    assert json.loads(json.dumps(stage))["bytes"] == 2.501e9
    assert stage["fits"] is False


def test_durations():
    assert duration((1.0, 2.0, 4.0)) == "2 s (1 to 4)"
    assert duration((3600.0, 7200.0, 14400.0)) == "2.0 h (1.0 to 4.0)"


@pytest.mark.parametrize(
    ("name", "engine"), [("ddp", "ddp"), ("fsdp2", "fsdp2"), ("zero2", "zero2"), ("zero3", "zero3")]
)
def test_engines_of_the_shipped_launch_files(root, name, engine):
    file = root / f"recipes/accelerate/{name}.yaml"
    assert engine_of(file) == engine
    assert Asked.of(None, 80.0, Launch(file, processes=4)) == Asked(4, 80.0, engine)


@pytest.mark.parametrize("words", [["--memory", "abc"], ["--memory", "-1"], ["--devices", "0"]])
def test_a_machine_that_makes_no_sense_is_refused(words):
    done = CliRunner().invoke(app, ["check", "project.yaml", *words])
    assert done.exit_code == 2
    assert "Traceback" not in done.output


@pytest.mark.slow
def test_measured_steps_leave_nothing(tmp_path, tiny_llama):
    project = make_project(tmp_path, tiny_llama, stages={"sft": {}, "dpo": {}}, evaluate=False)
    found = []
    runner.check(project, None, lambda scratch: found.append(look(scratch, Asked(), measure=True)))
    stages = {stage.stage: stage for stage in found[0].stages}
    assert stages.keys() == {"sft", "dpo"}
    assert all(stage.measured and stage.seconds[0] > 0 for stage in stages.values())
    assert not project.run_dir.exists()
