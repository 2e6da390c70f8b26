"""What 8 GPUs need and reach by arithmetic: memory by part, operations and bytes of a step, and which of the two waits.

usage: python benchmarks/efficiency.py [--out FILE] [--page docs/scale.md]

Nothing is run. For two sizes of Llama and each way to train them it computes what `rlhf/preflight/arithmetic.py` says
of their shapes, under the assumptions that stand as constants below, and writes the tables of docs/scale.md. Beside
them it sets what the same formulas give for a small model on CPU processes, whose bytes were counted
(`results/sharding.json`), and for what was timed on a CPU (`results/ppo.json`).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficiency_tables import counted, measured, memory_table, time_table

from rlhf.preflight.arithmetic import (
    ADAM,
    BF16,
    FP32,
    LLAMA_8B,
    LLAMA_70B,
    PEAK_FLOPS,
    activations,
    forward_flops,
    gathered,
    logits,
    passes,
    ppo_flops,
    ppo_step_bytes,
    step_bytes,
)

ROOT = Path(__file__).resolve().parents[1]
GPUS, MEMORY = 8, 80e9
"""One machine of 8 H100 SXM, 80 GB each (NVIDIA's data sheet)."""
MATMUL = 0.7 * PEAK_FLOPS["H100"]
"""Operations a second that large bf16 products reach: 70% of the data sheet's 989e12. An assumption; cuBLAS reaches 60
to 80% at these shapes."""
LINK = 0.8 * 450e9
"""Bytes a second into a GPU: NVLink 4 has 900 GB/s both ways together, 450 GB/s each way; 80% of it is assumed."""
READ = 0.8 * 3.35e12
"""Bytes a second from a GPU's memory: 80% of the data sheet's 3.35 TB/s, assumed."""
EAGER = 0.6e-3
"""Seconds that Python takes to launch a layer of a decoding step: 25 kernels and their modules at about 25 µs. Assumed;
a sampler of CUDA graphs (vLLM) does not have it."""
CONTEXT = 2e9
"""Bytes of CUDA's context, NCCL's buffers and fragmentation, assumed."""
BY_LAYER = "gathered layer by layer"
RANK = 16
"""Of the adapters."""
MEASURED_AT_ONCE = 16
"""Completions of a forward pass under reference, critic and reward model."""


@dataclass(frozen=True)
class Plan:
    """A way to train."""

    model: str
    stage: str
    """`sft`, `dpo` or `ppo`."""
    lora: bool
    rows: int
    """Sequences of a micro-batch on a GPU; a DPO pair is two."""
    prompt: int
    completion: int
    rollout: str = ""
    """PPO's: `gathered`, `gathered layer by layer` (`gather_for_rollouts: false`) or `vllm`."""
    critic: str = "separate"
    samples: int = 64
    """PPO: completions of a rollout on a GPU."""
    epochs: int = 4

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.completion

    @property
    def reference(self) -> bool:
        """Whether there is a reference."""
        return self.stage != "sft"

    @property
    def rank(self) -> int | None:
        """Rank of the adapters; None if all weights are trained."""
        return RANK if self.lora else None

    @property
    def label(self) -> str:
        """Its row's name."""
        kind = "LoRA" if self.lora else "all weights"
        more = [self.rollout] + (["shared critic"] if self.critic == "shared" else []) if self.stage == "ppo" else []
        return ", ".join([f"{self.model} {self.stage.upper()}", kind, *more])


SIZES = {"8B": LLAMA_8B, "70B": LLAMA_70B}


def plans() -> Iterator[Plan]:
    """The rows of the table."""
    for name, rows in (("8B", 4), ("70B", 2)):
        for lora in (True, False):
            yield Plan(name, "sft", lora, rows, 1024, 1024)
            yield Plan(name, "dpo", lora, rows, 512, 512)
            for rollout in ("gathered", BY_LAYER, "vllm"):
                yield Plan(name, "ppo", lora, rows, 512, 512, rollout)
        yield Plan(name, "ppo", True, rows, 512, 512, "vllm", critic="shared")


def memory(plan: Plan) -> dict[str, float]:
    """Bytes on a GPU, by part, when it holds most: in training, and in PPO also while it samples."""
    model = SIZES[plan.model]
    own_critic = plan.stage == "ppo" and plan.critic == "separate"
    trained = 1 + own_critic
    parts = {"context": CONTEXT}
    if plan.lora:
        parts["weights"] = BF16 * model.numbers / GPUS
        adapters = trained + (plan.stage == "ppo")
        parts["adapters"] = FP32 * float(adapters * model.adapter(RANK))
        parts["gradients"] = FP32 * float(trained * model.adapter(RANK))
        parts["optimizer"] = ADAM * float(trained * model.adapter(RANK))
    else:
        frozen = plan.reference * BF16 * model.numbers
        parts["weights"] = (trained * FP32 * model.numbers + frozen) / GPUS
        if plan.stage == "ppo":
            parts["reward model"] = float(BF16 * model.numbers)
        parts["gradients"] = FP32 * trained * model.numbers / GPUS
        parts["optimizer"] = ADAM * trained * model.numbers / GPUS
    parts["gathered layers"] = float(BF16 * (2 * model.layer + 2 * model.head))
    parts["activations"] = activations(model, plan.rows * plan.length, checkpointing=True)
    parts["logits"] = logits(model, plan.rows * (plan.length if plan.stage == "sft" else plan.completion))
    if plan.stage == "ppo":
        sampling = {"rollout's weights": sampling_weights(plan), "cache": cache(plan)}
        training = ("activations", "logits")
        if sum(sampling.values()) > sum(parts[name] for name in training):  # one after the other: the larger counts
            parts = {name: size for name, size in parts.items() if name not in training} | sampling
    return parts


def sampling_weights(plan: Plan) -> float:
    """Bytes of the weights that a GPU holds for sampling, beside its part of the base."""
    model = SIZES[plan.model]
    if plan.rollout == BY_LAYER:
        return 0.0
    return BF16 * model.numbers / (GPUS if plan.rollout == "vllm" else 1)


def cache(plan: Plan) -> float:
    """Bytes of keys and values of a rollout at its end."""
    return float(BF16 * SIZES[plan.model].cache * plan.samples * plan.length)


def step(plan: Plan) -> dict[str, float]:
    """Operations, bytes received and seconds of an optimizer step (SFT, DPO) or of a whole rollout (PPO), on a GPU.

    A forward or backward pass waits for the larger of its operations and its gathers, which run beside each other.
    """
    if plan.stage == "ppo":
        return _rollout(plan)
    model = SIZES[plan.model]
    head = plan.length if plan.stage == "sft" else plan.completion
    forward = plan.rows * forward_flops(model, plan.length, head)
    needed = forward * (passes(plan.lora) + plan.reference)
    computed = needed + forward  # backward computes every layer again
    moved = step_bytes(model, plan.rank, plan.reference, BF16, GPUS)
    seconds = max(computed / MATMUL, moved / LINK)
    return _row(needed, computed, moved, seconds, plan.rows * plan.length)


def _rollout(plan: Plan) -> dict[str, float]:
    """A rollout, its measuring, and its optimizer steps."""
    model, size = SIZES[plan.model], plan.samples
    sampled, received = sampling(plan)
    one = forward_flops(model, plan.length, plan.completion)
    measuring = 3 * size * one
    roles = 2 if plan.critic == "separate" else 1
    trained = plan.epochs * size * roles * one
    micro_batches = plan.epochs * size / plan.rows
    gather = gathered(model.numbers, BF16, GPUS)
    in_training = plan.epochs * ppo_step_bytes(model, plan.rank, plan.critic, BF16, GPUS, micro_batches / plan.epochs)
    in_measuring = 0.0 if plan.rollout == "gathered" else 3 * gather * size / MEASURED_AT_ONCE
    computing = trained * (passes(plan.lora) + 1)
    seconds = sampled + max(measuring / MATMUL, in_measuring / LINK) + max(computing / MATMUL, in_training / LINK)
    needed = ppo_flops(
        model, [(plan.length, plan.completion)] * size, lora=plan.lora, epochs=plan.epochs, critic=plan.critic
    )
    result = _row(needed, needed + trained, received + in_measuring + in_training, seconds, size * plan.length)
    return result | {"sampling_seconds": sampled}


def sampling(plan: Plan) -> tuple[float, float]:
    """Seconds of sampling a rollout, and bytes that a GPU receives meanwhile.

    The prompts are computed at the rate of products. Then each token of all completions waits for the weights to be
    read (`gathered`: all of them by each GPU; `vllm`: its eighth, for the completions of all GPUs), for the cache, for
    Python, or for the weights to be gathered anew (`gathered layer by layer`).
    """
    model = SIZES[plan.model]
    weights = float(BF16 * model.numbers)
    prompts = plan.samples * forward_flops(model, plan.prompt, 1) / MATMUL
    per_token = plan.samples * forward_flops(model, 1, 1) / MATMUL
    mean_cache = cache(plan) * (plan.prompt + plan.completion / 2) / plan.length
    gather = gathered(model.numbers, BF16, GPUS)
    if plan.rollout == "vllm":
        token, received = max(per_token, (weights / GPUS + mean_cache) / READ), gather
    else:
        token = max(per_token, (weights + mean_cache) / READ, model.layers * EAGER)
        received = gather
        if plan.rollout == BY_LAYER:
            token, received = max(token, gather / LINK), gather * plan.completion
    once = gather / LINK if plan.rollout != BY_LAYER else 0.0
    return prompts + once + plan.completion * token, received


def _row(needed: float, computed: float, moved: float, seconds: float, tokens: int) -> dict[str, float]:
    return {
        "needed_flops": needed, "computed_flops": computed, "received_bytes": moved, "seconds": seconds,
        "compute_seconds": computed / MATMUL, "link_seconds": moved / LINK,
        "mfu": needed / seconds / PEAK_FLOPS["H100"], "tokens_per_second": GPUS * tokens / seconds,
    }  # fmt: skip


CHANGES = {
    "activations": "a smaller `per_device_train_batch_size`",
    "logits": "a smaller `per_device_train_batch_size`",
    "rollout's weights": "`sampler: vllm` on other GPUs, or `gather_for_rollouts: false`",
    "cache": "a smaller `sampling_batch_size`",
    "reward model": "a reward model as an adapter, or an endpoint",
    "weights": "`adapter` instead of all weights, or more GPUs",
    "gradients": "`adapter` instead of all weights, or more GPUs",
    "optimizer": "`adapter` instead of all weights, or more GPUs",
}
"""What makes each part smaller."""


def first_change(parts: dict[str, float]) -> str:
    """Where memory does not hold the parts, the change that makes the largest of them smaller; else nothing."""
    if sum(parts.values()) <= MEMORY:
        return ""
    return CHANGES[max((name for name in parts if name in CHANGES), key=parts.__getitem__)]


def results() -> list[dict[str, Any]]:
    """Every row of the table."""
    found = []
    for plan in plans():
        parts = memory(plan)
        found.append({"plan": asdict(plan), "label": plan.label, "memory": parts, "bytes": sum(parts.values()),
                      "change": first_change(parts), **step(plan)})  # fmt: skip
    return found


def write_section(page: Path, name: str, text: str) -> None:
    """Put a text between a page's markers."""
    old = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
    page.write_text(pattern.sub(lambda _: text.strip() + "\n", old, count=1), encoding="utf-8")


ASSUMED = """Assumed: {gpus} H100 SXM of {memory:.0f} GB. Large bf16 products reach {matmul:.0%} of the data sheet's
{peak:.0f} TFLOP/s, links {link:.0f} of NVLink's 450 GB/s each way, memory {read:.2f} of 3.35 TB/s. Python launches a
layer of a decoding step in {eager:.1f} ms. FSDP2 spreads the weights over the 8 GPUs; frozen ones are bf16, trained
ones float32, gathered in bf16, with gradient checkpointing. LoRA has r {rank}. SFT has sequences of 2,048 tokens, DPO
and PPO prompts of 512 tokens and completions of 512. A micro-batch has 4 sequences a GPU at 8B, 2 at 70B; a rollout has
64 completions a GPU, 4 epochs. Not counted: imbalance, gaps between kernels, saving. So times are lower bounds, and MFU
(operations that the task needs, a second, over the data sheet's) an upper one."""


TIMES = """Of an optimizer step (SFT, DPO) or a whole rollout with its steps (PPO), on each GPU. TFLOP include the
second forward pass of gradient checkpointing; MFU does not. "–": it does not fit."""


def page(rows: list[dict[str, Any]], folder: Path) -> str:
    """The section of docs/scale.md."""
    assumed = ASSUMED.format(
        gpus=GPUS, memory=MEMORY / 1e9, matmul=MATMUL / PEAK_FLOPS["H100"], peak=PEAK_FLOPS["H100"] / 1e12,
        link=LINK / 1e9, read=READ / 1e12, eager=EAGER * 1e3, rank=RANK,
    )  # fmt: skip
    text = (
        f"`python benchmarks/efficiency.py` computes these tables. Nothing of them was run on a GPU.\n\n{assumed}\n\n"
    )
    text += f"{memory_table(rows, MEMORY)}\n\n{TIMES}\n\n{time_table(rows, MEMORY)}"
    file = folder / "sharding.json"
    if file.is_file():
        text += "\n\nThe same formulas against the bytes that a process received on CPUs, counted on a small model in "
        text += "float32 (`benchmarks/results/sharding.json`):\n\n"
        text += counted(json.loads(file.read_text(encoding="utf-8")))
    file = folder / "ppo.json"
    if file.is_file() and "peak" in (ppo := json.loads(file.read_text(encoding="utf-8"))):
        text += "\n\nThe same operations against what was timed on two CPU cores (`benchmarks/results/ppo.json`). Four "
        text += "completions share a prompt that the formula counts four times, so such rows can exceed 100%:\n\n"
        text += measured(ppo)
    return text


def main() -> None:
    """Compute, print, write."""
    parser = argparse.ArgumentParser(description="Memory, operations and bytes of training on 8 GPUs, by arithmetic.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/efficiency.json", help="result file")
    parser.add_argument("--page", type=Path, help="page whose section `efficiency` is written, docs/scale.md")
    args = parser.parse_args()
    rows = results()
    text = page(rows, ROOT / "benchmarks/results")
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    constants = {"gpus": GPUS, "memory": MEMORY, "matmul": MATMUL, "link": LINK, "read": READ, "eager": EAGER,
                 "rank": RANK, "context": CONTEXT}  # fmt: skip
    args.out.write_text(json.dumps({"assumed": constants, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if args.page:
        write_section(args.page, "efficiency", text)


if __name__ == "__main__":
    main()
