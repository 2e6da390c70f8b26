"""Started by torchrun: PPO on processes that share a server, under DDP and with sharded weights, and where one fails.

torchrun --nproc_per_node 2 -m tests.support.vllm_on_processes OUT BASE URL lora|whole
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from rlhf import processes
from rlhf.errors import SamplerFailed
from rlhf.models.fsdp import shard
from rlhf.models.shards import whole
from rlhf.policies.settings import SamplingSettings
from rlhf.policies.vllm.sampler import VllmSampler
from tests.support.launches import leave_together
from tests.support.ppo import PPOTrainer, make_roles, make_trainer


def trainer_at(folder: Path, base: Path, url: str, adapter: bool, sharded: bool = False, **fields: Any) -> PPOTrainer:
    """A trainer whose policy the server samples, two completions a prompt."""
    state = processes.state()
    roles = make_roles(base, adapter, critic=False)
    if sharded:
        shard(roles, state.device)
    settings = SamplingSettings(max_new_tokens=8, max_length=64, sampler="vllm", vllm_url=url)
    folder.mkdir(parents=True, exist_ok=True)
    return make_trainer(
        folder / "checkpoints", base, roles, sampler=VllmSampler(roles, [2], settings, folder), advantage="rloo",
        samples_per_prompt=2, per_device_train_batch_size=16 // state.num_processes, normalize_samples=6, **fields,
    )  # fmt: skip


def trained(trainer: PPOTrainer) -> dict[str, Any]:
    """What was logged, and the weights afterwards."""
    trainer.train()
    weights = {name: whole(weight) for name, weight in trainer.policy.trained().items()}
    return {"log": trainer.state.log_history, "weights": weights}


def failing(trainer: PPOTrainer) -> str:
    """What is raised where the last process alone gets no completions in the second rollout."""
    sampler, asked = trainer.policy.sampler, []
    original = sampler._sampled

    def sampled(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 3 and processes.rank() == processes.count() - 1:
            raise SamplerFailed("sampler: nobody is there")
        return original(*arguments)

    sampler._sampled = sampled
    try:
        trainer.train()
    except SamplerFailed as error:
        return str(error)
    return "nothing"


def main(out: str, base: str, url: str, kind: str) -> None:
    """Train each way; the first process writes."""
    processes.state()
    folder, adapter = Path(out), kind == "lora"
    results: dict[str, Any] = {
        name: trained(trainer_at(folder / name, Path(base), url, adapter, name == "sharded"))
        for name in ("ddp", "sharded")
    }
    raised = processes.gathered(failing(trainer_at(folder / "fails", Path(base), url, adapter)))
    if processes.is_main():
        torch.save({**results, "raised": raised}, folder / "results.pt")
    leave_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
