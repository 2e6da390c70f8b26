"""The judge of checkpoints where training shards the weights: every process scores its share by a whole copy."""

import subprocess
import sys

import pytest

from rlhf.artifacts.manifest import read_manifest
from rlhf.config.load import load_project
from tests.support.launches import environment, on_cpus
from tests.support.projects import write_project

JUDGE = """
def wanted(prompts, completions, **columns):
    return [-abs(len(text) - 30.0) for text in completions]
"""


@pytest.mark.scale
@pytest.mark.parametrize("adapter", [{"r": 4}, None], ids=["lora", "all weights"])
def test_checkpoints_of_sharded_weights_are_chosen_among_as_under_ddp(tmp_path, tiny_llama, adapter):
    (tmp_path / "judges.py").write_text(JUDGE)
    dpo = {
        "adapter": adapter, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-2, "checkpoint_judge": "wanted",
        "select": "best", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    rewards = {"wanted": {"function": f"{tmp_path / 'judges.py'}:wanted"}}
    path = write_project(tmp_path, tiny_llama, rewards=rewards, stages={"dpo": dpo})
    said = {}
    for name in ("ddp", "fsdp2"):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(on_cpus(name, tmp_path))]
        command += ["-m", "tests.support.evaluated", str(path), f"{name}:dpo"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        said[name] = read_manifest(load_project(path, [f"name={name}"]).run_dir / "dpo")["metrics"]
    assert said["fsdp2"]["selected_step"] == said["ddp"]["selected_step"]
    for ours, theirs in zip(said["fsdp2"]["tracked"], said["ddp"]["tracked"], strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            same = theirs[key] is None if value is None else value == pytest.approx(theirs[key], abs=1e-4, rel=1e-4)
            assert same, key
