"""The tables of efficiency.py in Markdown: what a GPU holds, what a step takes, and both beside what was measured."""

from __future__ import annotations

from typing import Any

from rlhf.preflight.arithmetic import FP32, Model, gathered, ppo_step_bytes, step_bytes

RANK = 16
"""Rank of the adapters that `sharding_run.py` trains."""
COUNTED = {"ppo-lora": "PPO, LoRA", "ppo-whole": "PPO, all weights", "dpo-lora": "DPO, LoRA",
           "dpo-whole": "DPO, all weights"}  # fmt: skip
"""Rows of results/sharding.json whose bytes are set against the formulas."""


def memory_table(rows: list[dict[str, Any]], limit: float) -> str:
    """What a GPU holds of its `limit` bytes."""
    lines = [
        "| | GB a GPU | weights, adapters, gradients, optimizer | activations and logits, or rollout | fits | if not |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = row["memory"]
        lasting = sum(
            parts.get(name, 0.0) for name in ("weights", "adapters", "gradients", "optimizer", "reward model")
        )
        passing = sum(parts.get(name, 0.0) for name in ("activations", "logits", "rollout's weights", "cache"))
        lines.append(
            f"| {row['label']} | {row['bytes'] / 1e9:.0f} | {lasting / 1e9:.1f} | {passing / 1e9:.1f} | "
            f"{'yes' if row['bytes'] <= limit else 'no'} | {row['change']} |"
        )
    return "\n".join(lines)


def time_table(rows: list[dict[str, Any]], limit: float) -> str:
    """What a step or a rollout takes, where a GPU of `limit` bytes holds it."""
    lines = [
        "| | TFLOP | GB received | computing, s | links, s | all, s | MFU | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row['computed_flops'] / 1e12:.0f}", f"{row['received_bytes'] / 1e9:.0f}",
            f"{row['compute_seconds']:.2f}", f"{row['link_seconds']:.2f}", f"{row['seconds']:.2f}",
            f"{row['mfu']:.0%}", f"{row['tokens_per_second']:,.0f}",
        ]  # fmt: skip
        if row["bytes"] > limit:
            cells = ["–"] * len(cells)
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def formulas(model: Model, row: str, processes: int) -> dict[str, float]:
    """Bytes that a process receives in float32, by phase.

    Args:
        model: The shapes.
        row: Of `COUNTED`.
        processes: Of the launch.
    """
    stage, _, trained = row.partition("-")
    rank = RANK if trained == "lora" else None
    if stage == "dpo":
        return {"step": step_bytes(model, rank, True, FP32, processes)}
    rollout = 3 * model.numbers - model.head if rank is None else model.numbers
    return {
        "rollout": gathered(rollout, FP32, processes),
        "step": ppo_step_bytes(model, rank, "separate", FP32, processes),
    }


def received(sharding: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What was counted on CPU processes: its name, bytes by the formulas, and bytes that were counted."""
    size = sharding["size"]
    names = ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocabulary", "tied")
    model, rows = Model(**{name: size[name] for name in names}), []
    for row, by_number in sharding["rows"].items():
        for count, result in by_number.items():
            if (processes := int(count)) > 1:
                for phase, formula in formulas(model, row, processes).items():
                    counts = sum(result["received"][phase].values())
                    rows.append((f"{COUNTED[row]}: {phase}, {processes} processes", formula, counts))
    return rows


def counted(sharding: dict[str, Any]) -> str:
    """The same as a table in Markdown."""
    lines = ["| | MB by the formula | MB counted |", "|---|---|---|"]
    lines += [f"| {name} | {formula / 1e6:.2f} | {count / 1e6:.2f} |" for name, formula, count in received(sharding)]
    return "\n".join(lines)


def measured(ppo: dict[str, Any]) -> str:
    """The rows of results/ppo.json against operations by the same formula, in Markdown."""
    flops = {run["row"]: run["flops"] for run in ppo["runs"]}
    lines = ["| | TFLOP by the formula | seconds | GFLOP/s | of square products on that machine |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, row in ppo["rows"].items():
        seconds = row["seconds"]["median"]
        rate = flops[name] / seconds
        share = rate / ppo["peak"]["matmul_flops"]
        lines.append(f"| {name} | {flops[name] / 1e12:.2f} | {seconds:.1f} | {rate / 1e9:.0f} | {share:.0%} |")
    return "\n".join(lines)
