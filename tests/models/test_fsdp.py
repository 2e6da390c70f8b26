"""PPO whose weights are sharded over processes by FSDP2, against DDP, on real processes."""

import json
import subprocess
import sys

import pytest
import torch

from tests.support.launches import environment
from tests.support.models import untied

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")


def both_ways(folder, base, kind, **fields) -> dict:
    """What PPO logged and left under DDP and with sharded weights, on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.support.fsdp_on_processes", str(folder), str(base), kind, json.dumps(fields)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "results.pt")


def differences(results) -> dict[str, float]:
    """The largest difference of each logged number, and of the weights."""
    logs = [results[name]["log"] for name in ("ddp", "sharded")]
    assert len(logs[0]) == len(logs[1])
    largest: dict[str, float] = {}
    for row, other in zip(*logs, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - set(TIMES):
            largest[name] = max(largest.get(name, 0.0), abs(row[name] - other[name]))
    ours, theirs = (results[name]["weights"] for name in ("ddp", "sharded"))
    assert ours.keys() == theirs.keys()
    return {**largest, "weights": max(float((ours[name] - theirs[name]).abs().max()) for name in ours)}


def test_an_adapter_on_a_sharded_base_trains_as_under_ddp(tmp_path, tiny_llama):
    """Bit for bit: what is gathered is what was sharded, and averages are of the same two numbers."""
    results = both_ways(tmp_path, tiny_llama, "lora")
    assert differences(results) == pytest.approx(dict.fromkeys(differences(results), 0.0), abs=1e-7)
    assert differences(results)["weights"] == 0.0
    shards = results["sharded"]
    assert shards["sharded"] == 2 * sum(  # of each layer: attention, feed-forward, two norms
        (32 * 32, 2 * 32 * 16, 32 * 32, 3 * 32 * 64, 2 * 32)
    )
    assert shards["held"] == shards["all"] - shards["sharded"] // 2
    assert results["ddp"]["held"] == results["ddp"]["all"]
    for outputs, count in zip(results["calls"], (5, 7), strict=True):  # processes that call a model apart
        assert len(outputs["whole"]) == count
        assert outputs["gathered"] == outputs["on demand"] == outputs["whole"]


@pytest.mark.scale
@pytest.mark.parametrize("ends", ["tied", "untied"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gradient_checkpointing": True, "samples_per_prompt": 2},
        {"gradient_accumulation_steps": 2, "advantage": "rloo", "samples_per_prompt": 2},
        {"gather_for_rollouts": False},
    ],
    ids=["gae", "checkpointing", "rloo", "on demand"],
)
@pytest.mark.parametrize("kind", ["lora", "whole"])
def test_sharded_weights_train_as_under_ddp(tmp_path, tiny_llama, kind, fields, ends):
    base = tiny_llama if ends == "tied" else untied(tmp_path, tiny_llama)
    found = differences(both_ways(tmp_path, base, kind, **fields))
    if kind == "lora" and fields.get("gather_for_rollouts") is None:
        assert found["weights"] == 0.0
    assert max(found.values()) < 1e-5, found


@pytest.mark.scale
@pytest.mark.parametrize("kind", ["lora", "whole"])
def test_training_goes_on_from_a_checkpoint_of_sharded_weights(tmp_path, tiny_llama, kind):
    """Bit for bit; a checkpoint of DDP's goes on with sharded weights, too, and the reverse."""
    results = both_ways(tmp_path, tiny_llama, kind, save_strategy="steps", save_steps=2)
    ends = {name: results[name]["weights"] for name in results if name.startswith("resumed")}
    assert len(ends) == 3
    for name, weights in ends.items():
        for part, weight in weights.items():
            exact = name == "resumed from sharded"
            torch.testing.assert_close(
                weight, results["sharded"]["weights"][part], atol=0 if exact else 1e-6, rtol=0 if exact else 1e-4,
                msg=lambda text, name=name, part=part: f"{name}: {part}: {text}",
            )  # fmt: skip
