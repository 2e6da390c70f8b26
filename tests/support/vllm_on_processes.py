"""Started by torchrun: PPO on processes that share a server, under DDP and with spread weights, and where one fails.

torchrun --nproc_per_node 2 -m tests.support.vllm_on_processes OUT BASE URL lora|whole
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from rlhf.errors import SamplerFailed
from rlhf.models.device import process_state
from rlhf.models.spread import spread
from rlhf.policies.settings import SamplingSettings
from rlhf.policies.vllm.sampler import VllmSampler
from tests.support.ppo import PPOTrainer, make_roles, make_trainer


def trainer_at(folder: Path, base: Path, url: str, adapter: bool, spreads: bool = False, **fields: Any) -> PPOTrainer:
    """A trainer whose policy the server samples, two completions a prompt."""
    state = process_state()
    roles = make_roles(base, adapter, critic=False)
    if spreads:
        spread(roles, state.device)
    settings = SamplingSettings(max_new_tokens=8, max_length=64, sampler="vllm", vllm_url=url)
    folder.mkdir(parents=True, exist_ok=True)
    return make_trainer(
        folder / "checkpoints", base, roles, sampler=VllmSampler(roles, [2], settings, folder), advantage="rloo",
        samples_per_prompt=2, per_device_train_batch_size=16 // state.num_processes, normalize_samples=6, **fields,
    )  # fmt: skip


def trained(trainer: PPOTrainer) -> dict[str, Any]:
    """What was logged, and the weights afterwards."""
    trainer.train()
    weights = {
        name: (one.full_tensor() if isinstance(one, DTensor) else one).detach().clone()
        for name, one in trainer.policy.trained().items()
    }
    return {"log": trainer.state.log_history, "weights": weights}


def failing(trainer: PPOTrainer) -> str:
    """What is raised where the last process alone gets no completions in the second rollout."""
    sampler, asked = trainer.policy.sampler, []
    original = sampler._sampled

    def sampled(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 3 and dist.get_rank() == dist.get_world_size() - 1:
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
    process_state()
    folder, adapter = Path(out), kind == "lora"
    results: dict[str, Any] = {
        name: trained(trainer_at(folder / name, Path(base), url, adapter, name == "spread"))
        for name in ("ddp", "spread")
    }
    raised: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(raised, failing(trainer_at(folder / "fails", Path(base), url, adapter)))
    if dist.get_rank() == 0:
        torch.save({**results, "raised": raised}, folder / "results.pt")
    dist.barrier()  # a process that leaves while another still talks to it can abort at its exit
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
