"""Every export of a finished stage, side by side: size, speed, KL, and what the run's judges say.

    python benchmarks/export.py runs/quickstart:dpo --prompts 100 [--page docs/export.md]

Prints a table in Markdown, and writes `benchmarks/results/export.json` and the page's section `exports`. A format that
does not take the model has no row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from efficiency import write_section

from rlhf.errors import UserError
from rlhf.evaluation.formatting import estimate, number
from rlhf.export.run import export, settings_of
from rlhf.pipeline.execute import quiet_environment, quiet_libraries
from rlhf.pipeline.folder import project_of
from rlhf.pipeline.runs import find_run, pick_stage
from rlhf.report.names import shown_verdict
from rlhf.report.tables import markdown_table

EXPORTS = [
    ("merged", None, None), ("int8", None, None), ("nf4", None, None), ("gguf-f16", None, None),
    ("gguf-q8_0", None, None), ("gguf-q4_0", None, None), ("merged", "magnitude", "0.5"), ("merged", "wanda", "0.5"),
    ("merged", "wanda", "2:4"), ("int8", "wanda", "0.5"),
]  # fmt: skip
HEADER = (
    "Export", "MB", "Share of size", "Tokens a second (stage)", "KL, nats a token", "Log-likelihood [95%], verdict",
    "Score [95%], verdict",
)  # fmt: skip


def row(result: dict) -> tuple[str, ...]:
    """A line of the table."""
    pruned = result["pruning"]
    rate, before = result["rate"], result["original_rate"]
    scores = [f"{each['judge']} {difference(each)}" for each in result["comparisons"]]
    return (
        result["format"] + (f", {pruned['how']}" if pruned else ""),
        number(result["bytes"] / 1e6, 2),
        f"{result['bytes'] / result['original_bytes']:.0%}",
        f"{rate['median']:.0f} ({before['median']:.0f})" if rate else "–",
        number(result["kl_per_token"]),
        "; ".join(map(difference, result["retained"])),
        "; ".join(scores),
    )


def difference(compared: dict) -> str:
    """A mean difference with its interval and verdict."""
    interval = estimate(compared["mean_difference"], compared["difference_ci"], signed=True)
    return f"{interval} {shown_verdict(compared)}"


def main() -> None:
    """Export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="RUN[:STAGE]")
    parser.add_argument("--prompts", type=int, default=200, help="most held-out prompts")
    parser.add_argument("--only", default="", help="formats, comma-separated")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export.json"))
    parser.add_argument("--page", type=Path, help="page whose section `exports` is written, docs/export.md")
    asked = parser.parse_args()
    quiet_environment()
    quiet_libraries()
    run_dir, stage = find_run(asked.run)
    folder, project = pick_stage(run_dir, stage, policies_only=False), project_of(run_dir)
    project = replace(project, evaluate=replace(project.evaluate, prompts=asked.prompts))
    results = []
    for format_name, prune, sparsity in EXPORTS:
        if asked.only and format_name not in asked.only.split(","):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            settings = settings_of(format_name, prune, sparsity, True)
            try:
                out = Path(scratch) / "out"
                results.append(export(project, run_dir, folder.name, out, settings, say=lambda line: None))
            except UserError as error:
                print(error, file=sys.stderr)
                continue
        print(markdown_table(HEADER, [row(results[-1])]).splitlines()[-1], flush=True)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = markdown_table(HEADER, map(row, results))
    print(table)
    if asked.page:
        write_section(asked.page, "exports", table)


if __name__ == "__main__":
    main()
