"""The two tables of efficiency.py in Markdown: what a GPU holds, and what a step takes."""

from __future__ import annotations

from typing import Any


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
