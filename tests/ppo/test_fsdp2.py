"""The ppo stage under the shipped FSDP2 file, through the real launcher, against the same stage under DDP."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from rlhf.config.load import load_project
from tests.support.launches import environment, on_cpus
from tests.support.projects import write_project

STEPS = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1}
PPO = {**STEPS, "max_steps": 4, "num_ppo_epochs": 2, "max_new_tokens": 8, "normalize_samples": 8,
       "rewards": {"reward": 1.0, "long": 1.0}}  # fmt: skip
JUDGE = """
import gc, os, pathlib
from torch.distributed.tensor import DTensor
def score(prompts, completions, **columns):
    here = pathlib.Path(__file__).parent
    if (here / "kill").exists() and list(here.glob("runs/*/.ppo.partial/checkpoints/checkpoint-2")):
        os.kill(os.getpid(), 9)
    parts = sum(isinstance(one, DTensor) for one in gc.get_objects())
    (here / f"parts-{os.environ.get('RANK')}").write_text(str(parts))
    return [float(len(text)) for text in completions]
"""
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_time_s")


def launched(folder, path, engine, *options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(engine)]
    command += [str(folder / "recipes/ppo.py"), "--config", str(path), *options]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)


def parents(root, path) -> None:
    for stage in ("sft", "reward"):
        command = [sys.executable, str(root / f"recipes/{stage}.py"), "--config", str(path)]
        subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=200)


def log_of(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.scale
@pytest.mark.parametrize("kind", ["lora", "whole"])
def test_the_stage_is_the_same_under_fsdp2_and_ddp(tmp_path, tiny_llama, root, kind):
    """Numbers, artefact and probe; a run that is killed in a rollout and goes on ends in the same weights."""
    stages = {"sft": {**STEPS, "max_steps": 2}, "reward": {**STEPS, "max_steps": 2}, "ppo": PPO}
    model = {"name_or_path": str(tiny_llama), **({} if kind == "lora" else {"adapter": None})}
    path = write_project(tmp_path, tiny_llama, stages=stages, model=model)
    (tmp_path / "judge.py").write_text(JUDGE)
    parents(root, path)
    run = load_project(path).run_dir
    ends = {}
    for name, options in {"cpu": (), "fsdp2": (), "killed": ("--save_steps", "2")}.items():
        engine = on_cpus("fsdp2" if name == "killed" else name, tmp_path)
        if name == "killed":
            (tmp_path / "kill").touch()
            assert launched(root, path, engine, *options).returncode != 0
            (tmp_path / "kill").unlink()
            assert (run / ".ppo.partial/checkpoints/checkpoint-2").exists()
        done = launched(root, path, engine, *options)
        assert done.returncode == 0, done.stderr[-3000:]
        parts = [int((tmp_path / f"parts-{rank}").read_text()) for rank in range(2)]
        assert all(parts) if name != "cpu" else not any(parts)
        ends[name] = tmp_path / name
        os.rename(run / "ppo", ends[name])
    exact = {"abs": 0, "rel": 0} if kind == "lora" else {"abs": 1e-5, "rel": 1e-5}
    for row, other in zip(*(log_of(ends[name]) for name in ("cpu", "fsdp2")), strict=True):
        assert other == pytest.approx(row, **exact)
    file = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    weights = {name: load_file(folder / file) for name, folder in ends.items()}
    records = {name: json.loads((folder / "stage.json").read_text()) for name, folder in ends.items()}
    for name, tensor in weights["cpu"].items():
        assert (tensor - weights["fsdp2"][name]).abs().max() <= (0 if kind == "lora" else 1e-6), name
        assert (weights["killed"][name] - weights["fsdp2"][name]).abs().max() == 0, name
    assert weights["cpu"].keys() == weights["fsdp2"].keys()
    assert records["fsdp2"]["probe"]["outputs"] == pytest.approx(records["cpu"]["probe"]["outputs"], abs=1e-4)
    assert (records["fsdp2"]["artifact"] == records["cpu"]["artifact"]) is (kind == "lora")


@pytest.mark.scale
@pytest.mark.parametrize(("engine", "said"), [("zero3", "fsdp2.yaml"), ("fsdp1", "fsdp_version: 2")])
def test_other_engines_are_refused_before_anything_is_loaded(tmp_path, tiny_llama, root, engine, said):
    path = write_project(tmp_path, tiny_llama, stages={"ppo": {**PPO, "rewards": {"long": 1.0}}})
    settings = on_cpus("zero3" if engine == "zero3" else "fsdp2", tmp_path)
    settings.write_text(settings.read_text().replace("fsdp_version: 2", "fsdp_version: 1"))
    (tiny_llama / "model.safetensors").rename(tiny_llama / "elsewhere")
    try:
        done = launched(root, path, settings)
    finally:
        (tiny_llama / "elsewhere").rename(tiny_llama / "model.safetensors")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0
    assert len(errors) == 1
    assert said in errors[0]
