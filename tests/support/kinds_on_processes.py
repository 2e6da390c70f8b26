"""Started by torchrun: trains a tiny policy of each kind, and writes what became of it.

torchrun --nproc_per_node 2 kinds_on_processes.py OUT KIND=FOLDER …
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.support.kinds import make_trainer
from tests.support.ppo import rollout_rows


def trained(kind: str, folder: Path, base: Path, processes: int) -> tuple[list[dict[str, float]], dict]:
    """What was logged of each rollout of eight completions, and the weights afterwards."""
    trainer = make_trainer(
        kind, folder, base, per_device_train_batch_size=8 // processes, normalize_samples=6, optim="sgd",
        learning_rate=0.1,
    )  # fmt: skip
    trainer.train()
    return rollout_rows(trainer), {name: weight.detach().clone() for name, weight in trainer.policy.trained().items()}


def main(out: str, *bases: str) -> None:
    """Train each kind; the first process writes."""
    dist.init_process_group("gloo")
    pairs = (base.split("=", 1) for base in bases)
    results = {kind: trained(kind, Path(out).parent / kind, Path(base), dist.get_world_size()) for kind, base in pairs}
    if dist.get_rank() == 0:
        torch.save(results, out)
    dist.barrier()  # a process that leaves while another still talks to it can abort at its exit
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
