"""Started by torchrun: PPO with weights that are sharded over the processes, beside the same PPO under DDP.

torchrun --nproc_per_node 2 -m tests.support.fsdp_on_processes OUT BASE lora|whole [JSON of settings]
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from rlhf import processes
from rlhf.models.fsdp import gathered, gathered_on_demand, shard
from rlhf.models.shards import whole
from tests.support.launches import leave_together
from tests.support.ppo import make_roles, make_trainer


def trained(
    folder: Path, base: Path, adapter: bool, sharded: bool, fields: dict[str, Any], checkpoint: str | None = None
) -> dict[str, Any]:
    """What was logged, the weights afterwards, and how many of all numbers this process held."""
    roles = make_roles(base, adapter, critic=fields.get("advantage", "gae") == "gae")
    if sharded:
        shard(roles, processes.state().device)
    every = list(roles.parameters())
    held = sum(one.to_local().numel() if isinstance(one, DTensor) else one.numel() for one in every)
    settings = {"per_device_train_batch_size": 8 // processes.count(), "normalize_samples": 6, **fields}
    trainer = make_trainer(folder, base, roles, **settings)
    trainer.train(resume_from_checkpoint=checkpoint)
    weights = {name: whole(weight) for name, weight in trainer.policy.trained().items()}
    return {
        "log": trainer.state.log_history, "weights": weights, "held": held, "all": sum(one.numel() for one in every),
        "sharded": sum(one.numel() for one in every if isinstance(one, DTensor)),
    }  # fmt: skip


@torch.no_grad()
def uneven_calls(base: Path) -> dict[str, list[float]]:
    """Outputs of calls of which each process makes another number, in each way to gather, and of the whole model."""
    ids = torch.arange(12).view(2, 6) + processes.rank()
    found = {}
    for name, gather in {"whole": None, "gathered": gathered, "on demand": gathered_on_demand}.items():
        roles = make_roles(base)
        if gather is not None:
            shard(roles, processes.state().device)
        with gather(roles) if gather else contextlib.nullcontext():
            states = [roles.base.base_model(ids).last_hidden_state for _ in range(3 * processes.rank())]
            logits = [roles.base(ids[:, : 2 + place]).logits for place in range(4 - processes.rank())]
        logits.append(roles.base(ids).logits)  # behind it they call together again
        found[name] = [tensor.double().sum().item() for tensor in (*states, *logits)]
    return found


def main(out: str, base: str, kind: str, settings: str = "{}") -> None:
    """Train both ways; the first process writes."""
    processes.state()
    folder, adapter, fields = Path(out), kind == "lora", json.loads(settings)
    results = {
        name: trained(folder / name, Path(base), adapter, name == "sharded", fields) for name in ("ddp", "sharded")
    }
    if "save_steps" in fields:  # from the first checkpoint of each on, also as the other does
        ways = {"ddp": True, "sharded": True, "whole": False}
        for name, sharded in ways.items():
            first = folder / ("sharded" if name == "whole" else name) / f"checkpoint-{fields['save_steps']}"
            given = {name: value for name, value in fields.items() if not name.startswith("save_")}
            again = trained(folder / "again" / name, Path(base), adapter, sharded, given, str(first))
            results[f"resumed from {name}"] = again
    calls = processes.gathered(uneven_calls(Path(base)))
    if processes.is_main():
        torch.save({**results, "calls": calls}, folder / "results.pt")
    leave_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
