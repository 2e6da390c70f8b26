"""Checks of a GPU that no benchmark of speed makes: quantised gradients, the sharding code in bf16, peaks of memory.

usage: python benchmarks/gpu_checks.py --device cuda --bf16 --size 0.5b

* `nf4`: LoRA gradients on a base that bitsandbytes quantised to 4 bits, against those on the dense model that it stands
  for, after a forward pass without gradients, as PPO samples.
* `sharded`: a step of PPO whose base is sharded over one process, against the same step without.
* `checkpointing`: most memory of a LoRA step, with gradient checkpointing and without.

A check whose package is not there says so. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from setting import (
    Size,
    clock,
    environment,
    parser,
    peak_mb,
    print_table,
    read_prompts,
    size_of,
    write_result,
    write_setting,
)
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM

from rlhf.models.fsdp import shard
from rlhf.models.roles import CRITIC, Roles
from rlhf.policies.causal_lm import CausalLMPolicy, PromptRow
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.trainer import PPOTrainer
from rlhf.rewards.compose import Rewards

LORA = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


def adapted(model: Any) -> Any:
    """The model with an adapter whose both halves have weights, the same every time."""
    torch.manual_seed(0)
    wrapped = get_peft_model(model, LORA)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return wrapped


def gradients(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """All gradients of the adapter for the language model's loss on some tokens, as one vector."""
    model.train()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad]).float()


def nf4(folder: Path, args: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Cosine and relative difference of the two gradients."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {"left_out": "bitsandbytes is not installed"}
    import bitsandbytes
    from transformers import BitsAndBytesConfig

    kind = torch.bfloat16 if args.bf16 else torch.float32
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=kind)
    quantised = LlamaForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=kind, device_map={"": args.device}
    )
    dense = LlamaForCausalLM.from_pretrained(folder, dtype=kind).to(args.device)
    layers = {name: layer for name, layer in quantised.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}
    for name, layer in layers.items():
        layer.support_avx512bf16_for_cpu = False  # else a pass without gradients repacks the weights on such CPUs
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        dense.get_submodule(name).weight.data.copy_(weight)
    ids = torch.randint(2, min(size.vocabulary, 8000), (2, 64), generator=torch.Generator().manual_seed(0))
    ids = ids.to(args.device)
    models = adapted(quantised), adapted(dense)
    for model in models:
        with torch.no_grad():
            model.eval()(input_ids=ids)
    ours, theirs = (gradients(model, ids) for model in models)
    return {
        "layers": len(layers), "cosine": float(nn.functional.cosine_similarity(ours, theirs, dim=0)),
        "difference": float((ours - theirs).norm() / theirs.norm()),
    }  # fmt: skip


def letters(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """A reward: letters of each reply."""
    return [float(len(text)) for text in completions]


def ppo(folder: Path, args: argparse.Namespace, sharding: bool, checkpointing: bool) -> dict[str, Any]:
    """One rollout of PPO with LoRA and a step: its first log, its seconds and its peak."""
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if args.bf16 else torch.float32)
    torch.manual_seed(0)
    policy = get_peft_model(base, LORA)
    policy.add_adapter(CRITIC, LORA)
    roles, tokenizer = Roles(policy, nn.Linear(base.config.hidden_size, 1)), AutoTokenizer.from_pretrained(folder)
    if sharding:
        shard(roles, torch.device(args.device))
    rows = [PromptRow(row["ids"], row["text"], {}) for row in read_prompts(folder)]
    config = PPOConfig(
        str(folder / "out"), per_device_train_batch_size=len(rows), num_ppo_epochs=1, max_steps=1, normalize_samples=0,
        max_new_tokens=args.reply, truncated="score", use_cpu=args.device == "cpu", report_to="none",
        save_strategy="no", logging_steps=1, gradient_checkpointing=checkpointing, disable_tqdm=True,
    )  # fmt: skip
    trainer = PPOTrainer(CausalLMPolicy(roles, tokenizer, config), config, rows, Rewards({"r": letters}, {"r": 1.0}))
    start = clock()[0]
    trainer.train()
    seconds = clock()[0] - start
    (log,) = (row for row in trainer.state.log_history if "policy/loss" in row)
    names = ("policy/loss", "value/loss", "grad_norm", "objective/scores")
    return {"seconds": seconds, "peak_mb": peak_mb(), **{name: log[name] for name in names}}


def sharding(folder: Path, args: argparse.Namespace, size: Size) -> dict[str, Any]:
    """The step with its base sharded over one process, against the same without: largest relative difference."""
    plain = ppo(folder, args, False, False)
    with tempfile.NamedTemporaryFile() as file:
        backend = "nccl" if args.device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{file.name}", rank=0, world_size=1)
        try:
            alone = ppo(folder, args, True, False)
        finally:
            dist.destroy_process_group()
    names = [name for name in plain if name not in ("seconds", "peak_mb")]
    difference = max(abs(alone[name] - plain[name]) / max(1e-6, abs(plain[name])) for name in names)
    return {"backend": backend, "plain": plain, "sharded": alone, "difference": difference}


def checkpointing(folder: Path, args: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Peaks of a step with and without."""
    return {str(on).lower(): ppo(folder, args, False, on) for on in (False, True)}


CHECKS: dict[str, Callable[[Path, argparse.Namespace, Size], dict[str, Any]]] = {
    "nf4": nf4, "sharded": sharding, "checkpointing": checkpointing,
}  # fmt: skip


def main() -> None:
    """Run, print, write."""
    made = parser("Quantised gradients, sharding at one process, and peaks.", "gpu_checks", repeats=1)
    args = made.parse_args()
    size = size_of(args)
    args.reply = size.reply
    if args.threads:
        torch.set_num_threads(args.threads)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_setting(folder, args.pairs, size, min(size.batch, 32))
        for check, run in CHECKS.items():
            found[check] = run(folder, args, size)
    lines = [[check, ", ".join(f"{key} {value}" for key, value in result.items())] for check, result in found.items()]
    print_table(["check", "result"], lines)
    write_result(args.out, size, args, environment=environment(), rows=found)


if __name__ == "__main__":
    main()
