"""Started by torchrun on two processes: tensors that are sharded beside tensors that are whole. OUT gets what is seen.

torchrun --nproc_per_node 2 -m tests.support.shards_on_processes OUT UNTIED T5
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer

from rlhf import processes
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models import device, fsdp, shards
from rlhf.models.load import Source, load_policy
from rlhf.models.tasks import CAUSAL_LM, SEQ2SEQ
from tests.support.launches import leave_together

CPU = torch.device("cpu")


def mixed() -> nn.Module:
    """A sharded layer of 3 rows, the second process's part of which is smaller, and a whole one."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(6.0).view(3, 2))
        model[1].weight.fill_(2.0)
    fully_shard(model[0], mesh=init_device_mesh("cpu", (2,)))
    return model


def of_shards() -> dict[str, Any]:
    """Norms, clipping, gathering and putting back."""
    model = mixed()
    weights = list(model.parameters())
    seen: dict[str, Any] = {
        "norm": float(shards.norm(weights)),
        "norm of sharded": float(shards.norm(weights[:1])),
        "norm of whole": float(shards.norm(weights[1:])),
        "counted": shards.counted(model),
        "whole": shards.whole(weights[0]).tolist(),
        "state": {name: one.tolist() for name, one in shards.whole_state(dict(model.named_parameters()), True).items()},
        "not kept": shards.whole_state(dict(model.named_parameters()), False),
    }
    shards.put(weights[0], torch.full((3, 2), 7.0))
    shards.put(weights[1], torch.full((1, 3), 8.0))
    seen["put"] = [shards.whole(weight).unique().tolist() for weight in weights]
    for limit in (1.0, 100.0):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        total = shards.norm([weight.grad for weight in weights])
        shards.clip_gradients(weights, limit, total)
        seen[f"clipped to {limit}"] = [shards.whole(weight.grad).unique().tolist() for weight in weights]
    return {**seen, "norm of gradients": float(total)}


def of_averages() -> list[Any]:
    """Averages where both processes, one and none have a gradient."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    weights[0].grad = torch.full((2,), 1.0 + 2 * dist.get_rank())
    if dist.get_rank() == 1:
        weights[1].grad = torch.full((2,), 3.0)
    fsdp.average_gradients(weights)
    return [None if weight.grad is None else weight.grad.tolist() for weight in weights]


def of_memory() -> list[bool]:
    """Whether whole weights fit: into just enough memory, and where a byte is missing on the first or the second."""
    model, needed = mixed(), (8, 16)[dist.get_rank()]  # the rows of the other process
    answers = []
    for short in (None, 0, 1):
        free = 2 * needed - (short == dist.get_rank())
        fsdp._free_memory = lambda _, free=free: free  # type: ignore[assignment]
        answers.append(fsdp.fits_whole(model, CPU))
    return answers


def loaded(folder: str, task: Any, dtype: str) -> Any:
    """Types of a model's parameters where the main process alone reads it; or why it is refused."""
    settings = ModelConfig(name_or_path=folder, dtype=dtype)
    try:
        model = load_policy(Source(folder), settings, AutoTokenizer.from_pretrained(folder), task, to_shard=True)
    except UserError as error:
        return str(error)
    return {name: str(parameter.dtype) for name, parameter in model.named_parameters()}


def main(out: str, untied: str, t5: str) -> None:
    """See, and write."""
    processes.state()
    os.environ[device.EFFICIENT_LOADING] = "true"  # the main process alone reads weights
    seen = {
        "shards": of_shards(),
        "averages": of_averages(),
        "fits": of_memory(),
        "untied": loaded(untied, CAUSAL_LM, "float32"),
        "t5": loaded(t5, SEQ2SEQ, "float16"),
    }
    Path(out, f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))
    leave_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
