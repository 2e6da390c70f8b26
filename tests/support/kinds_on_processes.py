"""Started by torchrun: trains a tiny policy of each kind, and writes what became of it.

torchrun --nproc_per_node 2 kinds_on_processes.py OUT [--sharded] KIND=FOLDER …
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlhf import processes
from rlhf.models.shards import whole
from tests.support.kinds import make_trainer
from tests.support.launches import leave_together
from tests.support.ppo import rollout_rows


def trained(kind: str, folder: Path, base: Path, processes: int, **options: Any) -> tuple[list[dict[str, float]], dict]:
    """What was logged of each rollout of eight completions, and the weights afterwards."""
    trainer = make_trainer(
        kind, folder, base, per_device_train_batch_size=8 // processes, normalize_samples=6, optim="sgd",
        learning_rate=0.1, **options,
    )  # fmt: skip
    trainer.train()
    return rollout_rows(trainer), {name: whole(weight) for name, weight in trainer.policy.trained().items()}


def main(out: str, *bases: str) -> None:
    """Train each kind; the first process writes.

    The results are by kind, whether it has an adapter, and how its weights are gathered: None where they are whole.
    """
    processes.state()
    pairs = [base.split("=", 1) for base in bases if base != "--sharded"]
    ways = list(itertools.product((True, False), (None, True, False))) if "--sharded" in bases else [(True, None)]
    results = {
        (kind, adapter, gather): trained(
            kind, Path(out).parent / f"{kind} {adapter} {gather}", Path(base), dist.get_world_size(), adapter=adapter,
            sharded=gather is not None, gather_for_rollouts=gather,
        )
        for kind, base in pairs for adapter, gather in ways
    }  # fmt: skip
    if dist.get_rank() == 0:
        torch.save(results, out)
    leave_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
