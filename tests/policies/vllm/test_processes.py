"""Several processes share a server: each asks for its own prompts, and what one cannot do, none goes on without."""

import subprocess
import sys

import pytest
import torch

from tests.support.launches import environment
from tests.support.vllm_on_processes import trained, trainer_at
from tests.support.vllm_server import Engine, Server


@pytest.mark.scale
@pytest.mark.parametrize("kind", ["lora", "whole"])
def test_two_processes_equal_one_and_fail_together(tmp_path, tiny_llama, kind):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with Server(Engine(tiny_llama)) as server:
        arguments = [str(tmp_path), str(tiny_llama), server.url, kind]
        done = subprocess.run(
            [*command, "-m", "tests.support.vllm_on_processes", *arguments],
            capture_output=True, text=True, check=False, env=environment(), timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        updates = server.engine.calls.count("POST /update_weight_version")
        assert updates == (3 if kind == "lora" else 9)  # of each run the base, or for each rollout all weights
        alone = trained(trainer_at(tmp_path / "alone", tiny_llama, server.url, kind == "lora"))
    results = torch.load(tmp_path / "results.pt")
    for name in ("ddp", "sharded"):
        for row, other in zip(results[name]["log"], alone["log"], strict=True):
            for key in row.keys() & {"objective/scores", "objective/kl", "policy/loss", "sampler/gap"}:
                assert row[key] == pytest.approx(other[key], abs=1e-5, rel=1e-4), (name, key)
        for key, weight in alone["weights"].items():
            torch.testing.assert_close(results[name]["weights"][key], weight, atol=2e-5, rtol=1e-3, msg=f"{name} {key}")
    assert results["raised"] == ["sampler: nobody is there"] * 2
    assert [path.name for path in (tmp_path / "fails/checkpoints").iterdir()] == ["checkpoint-2"]
