"""Started by torchrun: PPO with weights that are spread over the processes, beside the same PPO under DDP.

torchrun --nproc_per_node 2 -m tests.support.spread_on_processes OUT BASE lora|whole [JSON of settings]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from rlhf.models.device import process_state
from rlhf.models.spread import spread
from tests.support.ppo import make_roles, make_trainer


def trained(folder: Path, base: Path, adapter: bool, spreads: bool, fields: dict[str, Any]) -> dict[str, Any]:
    """What was logged, the weights afterwards, and how many of all numbers this process held."""
    roles = make_roles(base, adapter, critic=fields.get("advantage", "gae") == "gae")
    if spreads:
        spread(roles, process_state().device)
    every = list(roles.parameters())
    held = sum(one.to_local().numel() if isinstance(one, DTensor) else one.numel() for one in every)
    settings = {"per_device_train_batch_size": 8 // dist.get_world_size(), "normalize_samples": 6, **fields}
    trainer = make_trainer(folder, base, roles, **settings)
    trainer.train()
    weights = {
        name: (one.full_tensor() if isinstance(one, DTensor) else one).detach().clone()
        for name, one in trainer.policy.trained().items()
    }
    return {
        "log": trainer.state.log_history, "weights": weights, "held": held, "all": sum(one.numel() for one in every),
        "spread": sum(one.numel() for one in every if isinstance(one, DTensor)),
    }  # fmt: skip


def main(out: str, base: str, kind: str, fields: str = "{}") -> None:
    """Train both ways; the first process writes."""
    process_state()
    folder, adapter = Path(out), kind == "lora"
    results = {
        name: trained(folder / name, Path(base), adapter, name == "spread", json.loads(fields))
        for name in ("ddp", "spread")
    }
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    dist.barrier()  # a process that leaves while another still talks to it can abort at its exit
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
