"""One training whose weights several processes share; started by sharding.py through `accelerate launch`.

usage: sharding_run.py FOLDER JOB       JOB: JSON with `case` (ppo, dpo or load), `lora`, `reply` and `out`

Counts what each process holds, from its own parts of the weights, and what it receives, from the collectives that
PyTorch runs. The main process writes them to `out`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch.distributed as dist
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from setting import peak_mb, read_prompts
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaModel, set_seed

from rlhf import processes
from rlhf.artifacts.open import open_model
from rlhf.config.project import ModelConfig
from rlhf.models.device import claim_sharding
from rlhf.models.fsdp import shard
from rlhf.models.roles import CRITIC, Roles
from rlhf.policies.causal_lm import CausalLMPolicy, PromptRow
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.trainer import PPOTrainer
from rlhf.rewards.compose import Rewards

ADAPTER = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


class Received(TorchDispatchMode):
    """Adds up the bytes that this process receives, by phase and by kind of collective.

    Of N processes in a ring each receives (N − 1) of N parts of what is gathered or scattered, and twice that of what
    is all-reduced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, Counter[str]] = {}
        self.phase = "before"

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what is received within as part of a phase."""
        self.phase, outer = phase, self.phase
        try:
            yield
        finally:
            self.phase = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = func.name().partition("::")
        if kind[0] in ("c10d", "_c10d_functional"):
            self._add(kind[2], args, result)
        return result

    def _add(self, name: str, args: Any, result: Any) -> None:
        share = 1 - 1 / dist.get_world_size()
        kinds: dict[str, tuple[str, Callable[[], int], float]] = {
            "_allgather_base_": ("all-gather", lambda: args[0].nbytes, share),
            "all_gather_into_tensor": ("all-gather", lambda: result.nbytes, share),
            "_reduce_scatter_base_": ("reduce-scatter", lambda: args[1].nbytes, share),
            "reduce_scatter_tensor": ("reduce-scatter", lambda: args[0].nbytes, share),
            "allreduce_": ("all-reduce", lambda: sum(one.nbytes for one in args[0]), 2 * share),
            "all_reduce": ("all-reduce", lambda: args[0].nbytes, 2 * share),
            "broadcast_": ("broadcast", lambda: sum(one.nbytes for one in args[0]), 1.0),
        }
        kind, size, factor = kinds.get(name.partition(".")[0], ("", lambda: 0, 0.0))
        if kind:
            self.bytes.setdefault(self.phase, Counter())[kind] += round(size() * factor)


def held(model: nn.Module) -> dict[str, int]:
    """Numbers of the base in a model's weights, without adapters and heads that are added: all, and on this process."""
    base = {name: weight for name, weight in model.named_parameters() if ".lora_" not in name and "_head." not in name}
    heads = {name: weight for name, weight in model.named_parameters() if name.endswith("lm_head.weight")}
    weights = list({**base, **heads}.values())
    here = sum(one.to_local().numel() if isinstance(one, DTensor) else one.numel() for one in weights)
    return {"base": sum(one.numel() for one in weights), "held": here}


def sizes(model: nn.Module) -> dict[str, int]:
    """Bytes of one model's weights, as far as they are gathered: layers, embedding, head; and of what is trained."""
    found = {"layers": 0, "embedding": 0, "head": 0, "trained": 0}
    for name, weight in model.named_parameters():
        part = "embedding" if "embed_tokens" in name else "head" if "lm_head" in name else "layers"
        if weight.requires_grad:
            found["trained"] += weight.numel() * weight.element_size()
        if isinstance(weight, DTensor) and not name.startswith(("roles.critic.", "roles.reference_model.")):
            found[part] += weight.numel() * weight.element_size()
    return found


def roles_of(folder: Path, lora: bool) -> Roles:
    """One frozen base with adapters of policy and critic, or policy, critic and reference as models of their own."""
    model = LlamaForCausalLM.from_pretrained(folder)
    head = nn.Linear(model.config.hidden_size, 1)
    if not lora:
        return Roles(model, head, LlamaModel.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder))
    policy = get_peft_model(model, ADAPTER)
    policy.add_adapter(CRITIC, ADAPTER)
    return Roles(policy, head)


def ppo(folder: Path, job: dict[str, Any], counter: Received) -> Any:
    """PPO, two rollouts of one optimizer step each."""
    roles, tokenizer = roles_of(folder, job["lora"]), AutoTokenizer.from_pretrained(folder, padding_side="left")
    if claim_sharding():
        shard(roles, processes.state().device)
    args = PPOConfig(
        **common(folder, 2), num_ppo_epochs=1, max_new_tokens=job["reply"], normalize_samples=0, truncated="score"
    )
    prompts = [PromptRow(row["ids"], row["text"], {}) for row in read_prompts(folder)]
    policy = CausalLMPolicy(roles, tokenizer, args)
    trainer = PPOTrainer(policy, args, prompts, Rewards({"length": lengths}, {"length": 1.0}))
    collect = trainer.collect_rollout

    def counted(number: int) -> Any:
        with counter.during("rollout"):
            return collect(number)

    trainer.collect_rollout = counted  # type: ignore[method-assign]
    return trainer


def lengths(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """A reward: letters of each reply."""
    return [float(len(text)) for text in completions]


def common(folder: Path, steps: int) -> dict[str, Any]:
    """Arguments that both trainers have."""
    return {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4, "max_steps": steps, "use_cpu": True,
        "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "seed": 0,
        "gradient_checkpointing": False,
    }  # fmt: skip


def dpo(folder: Path, job: dict[str, Any], counter: Received) -> Any:
    """TRL's trainer of pairs as it is, two optimizer steps: accelerate shards its model."""
    rows = [{"prompt": row["text"], "chosen": " yes, it is", "rejected": " no"} for row in read_prompts(folder)]
    set_seed(0)
    model, args = LlamaForCausalLM.from_pretrained(folder), trl.DPOConfig(**common(folder, 2))
    return trl.DPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), peft_config=ADAPTER if job["lora"] else None,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip


def loaded(folder: Path) -> dict[str, float]:
    """Memory of this process, MB more than before: at most while a base is loaded and sharded, and afterwards."""
    before = resident_mb()
    shards = claim_sharding()
    model = open_model(ModelConfig(name_or_path=str(folder))).policy(placed=False, to_shard=shards)
    roles = Roles(get_peft_model(model, ADAPTER))
    del model
    if shards:
        shard(roles, processes.state().device)
    gc.collect()
    return {"peak": peak_mb() - before, "after": resident_mb() - before}


def resident_mb() -> float:
    """Memory that this process has resident, MB (2^20 bytes)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def of_all(value: Any) -> list[Any]:
    """The value of each process."""
    if not dist.is_initialized():
        return [value]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    return every


def main() -> None:
    """Train or load, and have the main process write what was counted."""
    folder, job = Path(sys.argv[1]), json.loads(sys.argv[2])
    processes.state()
    result = {"memory": of_all(loaded(folder))} if job["case"] == "load" else trained(folder, job)
    if processes.state().is_main_process:
        Path(job["out"]).write_text(json.dumps(result), encoding="utf-8")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def trained(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Train; what processes hold, and what this one received in each phase."""
    counter = Received()
    trainer = {"ppo": ppo, "dpo": dpo}[job["case"]](folder, job, counter)
    step = trainer.training_step

    def counted_step(*args: Any, **kwargs: Any) -> Any:
        with counter.during("step"):
            return step(*args, **kwargs)

    trainer.training_step = counted_step
    if processes.state().num_processes > 1:
        with counter:
            trainer.train()
    else:
        trainer.train()
    received = {phase: dict(kinds) for phase, kinds in counter.bytes.items()}
    steps, model = trainer.state.global_step, trainer.model
    return {"held": of_all(held(model)), "received": received, "sizes": sizes(model), "steps": steps}


if __name__ == "__main__":
    main()
