"""Stages on several processes that share the weights among them, through the real `accelerate launch`, on CPUs."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.launches import ZERO, environment, on_cpus
from tests.support.projects import write_project
from tests.support.scale import CLOSE, ENGINES, STEPS, cell, launch, make, measure, rows

needs_deepspeed = pytest.mark.skipif(not ZERO.is_dir(), reason="DeepSpeed is not here: make zero")
ENGINE = [
    pytest.param(name, marks=needs_deepspeed if name.startswith("zero") else ()) for name in ENGINES if name != "ddp"
]


def check(seen: dict, engine: str) -> None:
    """A stage trained as by DDP, left the same artefact, went on where it was stopped, and others can use it."""
    assert max(seen["train"].values()) <= CLOSE
    assert seen["save"] is True
    assert seen["resume"] is True
    assert seen["next"]
    assert seen["publish"]
    shares = seen["processes"]
    assert shares["engine"] == ENGINES[engine]
    assert (shares["weights_held"] < 0.6 * shares["weights"]) == (engine in ("fsdp2", "zero3"))


@pytest.mark.slow
def test_stages_under_fsdp_equal_ddp(tmp_path, tiny_llama):
    """sft, and dpo from what it left: losses, weights and files, stopped and continued, merged for publishing."""
    for engine in ("ddp", "fsdp2"):
        make(tmp_path / engine, tiny_llama, "lora")
        assert launch(tmp_path / engine, engine, ["sft", "dpo"]) is None
    held = {}
    for stage in ("sft", "dpo"):
        check(seen := cell(tmp_path / "fsdp2", tmp_path / "ddp", stage, "lora"), "fsdp2")
        alone = cell(tmp_path / "ddp", tmp_path / "ddp", stage, "lora")
        held[stage] = seen["processes"]["optimizer_held"] / alone["processes"]["optimizer_held"]
    assert max(held.values()) < 0.6


@pytest.mark.scale
@pytest.mark.parametrize("kind", ["lora", "all"])
def test_every_stage_by_every_engine(tmp_path, tiny_llama, kind):
    result = measure(tmp_path, tiny_llama, [kind], ["sft", "reward", "dpo", "kto"])
    for name, seen in result["cells"].items():
        engine = name.rpartition(" ")[2]
        if engine != "ddp":
            check(seen, engine)


def run(path: Path, config: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "rlhf.cli", "run", str(path), "--only", "sft", "--accelerate", str(config), *more]


def stopped_sft(folder: Path, base: Path, engine: str) -> tuple[Path, Path]:
    """A project whose sft an engine was stopped in behind its first checkpoint, and the engine's file."""
    path = write_project(folder, base, stages={"sft": {**STEPS, "max_steps": 40, "save_steps": 5}})
    config = on_cpus(engine, folder)
    stopped = subprocess.Popen(run(path, config), env=environment(), stderr=subprocess.DEVNULL)
    while not (folder / "runs/tiny/.sft.partial/checkpoints/checkpoint-5").exists():
        assert stopped.poll() is None
        time.sleep(0.05)
    stopped.terminate()
    assert stopped.wait(timeout=120) == 143
    return path, config


@pytest.mark.scale
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ddp", "fsdp2"),
        ("fsdp2", "ddp"),
        *(
            pytest.param(*pair, marks=needs_deepspeed)
            for pair in [("ddp", "zero3"), ("zero2", "ddp"), ("zero2", "zero3")]
        ),
    ],
)
def test_a_stage_goes_on_under_another_engine_or_says_which_one_it_needs(tmp_path, tiny_llama, before, after):
    """DDP and FSDP2 take up each other's checkpoints; DeepSpeed takes its own alone, in one stage of ZeRO."""
    path, _ = stopped_sft(tmp_path, tiny_llama, before)
    done = subprocess.run(
        run(path, on_cpus(after, tmp_path)), env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    run_dir = tmp_path / "runs/tiny"
    if after.startswith("zero") or before.startswith("zero"):
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2, done.stderr[-2000:]
        assert len(errors) == 1
        wrote = "ZeRO-2 on 2 processes" if before == "zero2" else "without DeepSpeed"
        assert re.search(f"was written by .*{wrote}.* start it as before, or delete .*/checkpoints", errors[0])
        return
    assert done.returncode == 0, done.stderr[-2000:]
    assert "continues from checkpoint-" in done.stderr
    logs = [rows(run_dir / "sft")]
    shutil.rmtree(run_dir)
    subprocess.run(run(path, on_cpus("ddp", tmp_path)), env=environment(), check=True, capture_output=True, timeout=300)
    logs.append(rows(run_dir / "sft"))
    for ours, theirs in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), ours["step"]


@pytest.mark.scale
@pytest.mark.parametrize("engine", ENGINE)
def test_a_signal_ends_a_sharded_training_behind_its_step(tmp_path, tiny_llama, engine):
    """What goes on then ends in the very weights of a run that nothing stopped; under FSDP2 on one process, too."""
    path, config = stopped_sft(tmp_path, tiny_llama, engine)
    folder = tmp_path / "runs/tiny"
    left = [file.name for file in (folder / ".sft.partial/checkpoints/checkpoint-5").iterdir()]
    assert all(name.endswith((".json", ".safetensors")) for name in left), "nothing is pickled"
    if engine == "fsdp2":
        shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    subprocess.run(run(path, config), env=environment(), check=True, capture_output=True, timeout=300)
    went_on = [json.loads(line) for line in (folder / "sft/metrics.jsonl").read_text().splitlines()]
    if engine == "fsdp2":
        shutil.rmtree(tmp_path / "runs")
        (tmp_path / "copy").rename(tmp_path / "runs")
        recipe = [sys.executable, "recipes/sft.py", "--config", str(path), "--gradient_accumulation_steps", "4"]
        alone = subprocess.run(recipe, env=environment(), check=True, capture_output=True, text=True, timeout=300)
        assert "continues with 1 processes instead of 2" in alone.stderr
        shutil.copy(folder / "sft/metrics.jsonl", tmp_path / "alone.jsonl")
        by_one = [json.loads(line) for line in (tmp_path / "alone.jsonl").read_text().splitlines()]
        losses = [[row["loss"] for row in log if "loss" in row] for log in (went_on, by_one)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    shutil.rmtree(tmp_path / "runs")
    subprocess.run(run(path, config), env=environment(), check=True, capture_output=True, timeout=300)
    whole = [json.loads(line) for line in (folder / "sft/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in went_on if "loss" in row] == [row["loss"] for row in whole if "loss" in row]


@pytest.mark.scale
@pytest.mark.parametrize("engine", ENGINE)
def test_a_sharded_training_stops_at_numbers_that_are_not_finite(tmp_path, tiny_llama, engine):
    """Weights without bound overflow at the second step; the incident says where."""
    stages = {"sft": {**STEPS, "learning_rate": 1e30, "lr_scheduler_type": "constant", "max_grad_norm": 0}}
    path = write_project(tmp_path, tiny_llama, stages=stages, model={"name_or_path": str(tiny_llama), "adapter": None})
    done = subprocess.run(
        run(path, on_cpus(engine, tmp_path)),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 4, done.stderr[-2000:]
    assert "is not finite" in done.stderr
    (incident, *_) = json.loads((tmp_path / "runs/tiny/.sft.partial/incident.json").read_text())["incidents"]
    assert len(incident["processes"]) == 2


@pytest.mark.slow
def test_fsdp_on_cpus_is_refused_where_accelerate_would_leave_it_out(tmp_path, tiny_llama, root):
    path = write_project(tmp_path, tiny_llama)
    command = [sys.executable, "-m", "rlhf.cli", "run", str(path), "--only", "sft"]
    command += ["--accelerate", str(on_cpus("fsdp2", tmp_path))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(PYTHONPATH=str(root)), timeout=300
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "FSDP, which accelerate does not run on CPUs" in errors[0]


@pytest.mark.scale
def test_accelerate_shards_on_cpus_in_the_harness(tmp_path, root):
    """The harness changes a name alone: parameters are shards, on the CPU, and gloo carries them."""
    (tmp_path / "shards.py").write_text(
        "import torch\n"
        "from accelerate import Accelerator\n"
        "from torch.distributed.tensor import DTensor\n"
        "from rlhf import processes\n"
        "processes.state()\n"
        "accelerator = Accelerator()\n"
        "model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "model, optimizer = accelerator.prepare(model, optimizer)\n"
        "parameters = list(model.parameters())\n"
        "assert all(isinstance(one, DTensor) for one in parameters)\n"
        "assert sum(one.to_local().numel() for one in parameters) == sum(one.numel() for one in parameters) // 2\n"
        "assert torch.distributed.get_backend() == 'gloo' and accelerator.device.type == 'cpu'\n"
        "print(accelerator.distributed_type.value)\n"
    )
    settings = on_cpus("fsdp2", tmp_path)
    settings.write_text(settings.read_text().replace("TRANSFORMER_BASED_WRAP", "NO_WRAP"))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings)]
    done = subprocess.run(
        [*command, str(tmp_path / "shards.py")], capture_output=True, text=True, check=False, env=environment(),
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["FSDP", "FSDP"]
