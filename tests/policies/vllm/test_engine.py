"""The real vLLM, in its own environment: two minutes and more."""

import json
import re
import subprocess
import sys

import pytest

from tests.support.launches import environment, on_cpus
from tests.support.projects import chats, make_project
from tests.support.vllm_measured import measured, save_llama

pytestmark = pytest.mark.scale


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "all weights"])
def test_it_samples_the_policy_after_each_update(vllm_python, tmp_path, adapter):
    """With LoRA the adapter is handed over alone; with all weights the head is tied to the embeddings."""
    _, rows = measured(vllm_python, save_llama(tmp_path / "base"), tmp_path, adapter)
    for row in rows:
        assert row.largest < 1e-4
        assert row.moved > 100 * row.gap


def test_two_processes_share_a_server(vllm_python, tmp_path, tiny_tokenizer):
    """PPO end to end: three rollouts from a server that the stage starts, with a second process beside it."""
    stage = {
        "max_steps": 6, "learning_rate": 1e-2, "num_ppo_epochs": 2, "max_new_tokens": 8, "normalize_samples": 8,
        "truncated": "score", "per_device_train_batch_size": 4, "sampler": "vllm", "vllm_python": vllm_python,
        "max_length": 128,
    }  # fmt: skip
    base = save_llama(tmp_path / "base", tiny_tokenizer)
    project = make_project(tmp_path, base, chats(), stages={"ppo": stage})
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(on_cpus("ddp", tmp_path))]
    done = subprocess.run(
        [*command, "-m", "rlhf.pipeline.stage", str(project.path), "ppo"],
        capture_output=True, text=True, check=False, env=environment(), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("sampler: starting vLLM") == 1
    rows = [json.loads(line) for line in (project.run_dir / "ppo/metrics.jsonl").read_text().splitlines()]
    gaps = [row["sampler/gap"] for row in rows if "sampler/gap" in row]
    assert len(gaps) == 3
    assert max(gaps) < 1e-5
    log = (project.run_dir / "ppo/vllm.log").read_text()
    loaded = re.findall(r"Loaded new LoRA adapter: name '(\w+-\d+)'", log)
    assert len(set(loaded)) == len(loaded) == 4  # the scores of the start, and three rollouts
    assert not (project.run_dir / "ppo/vllm").exists()
