"""Every sentence that a report can say, in one file, golden/sentences.txt.

`python -m tests.report.write_golden` writes it anew; read what `git diff` shows of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from rlhf.report import classes, sentences
from rlhf.report.build import build_report
from rlhf.report.caveats import caveats
from rlhf.report.html import standfirst
from rlhf.report.schema import Report
from rlhf.report.terminal import terminal_report
from tests.report import cases
from tests.support.reports import fake_full_run, fake_label_run, fake_rounds, fake_run, fake_unjudged_run

GOLDEN = Path(__file__).with_name("golden") / "sentences.txt"
TURNED = "over-optimised: the checkpoint judge's score turned down after step 20"
POINTS = [{"step": 0}, {"step": 20}, {"step": 40}]
DOUBTED = {"reward": {**cases.REWARD, "accuracy": 0.44, "accuracy_ci": [0.38, 0.5], "length_baseline": 0.4}}


def reports() -> Iterator[tuple[str, Report]]:
    """Reports by hand that differ in one thing each."""
    row, made = cases.comparison, cases.report
    yield "better", made()
    yield (
        "worse than the base",
        made(
            comparisons=[row(verdict="worse", policy="sft", baseline="base", judge="reward")],
            stages={"reward": cases.REWARD},
        ),
    )
    yield "own base", made(comparisons=[row(baseline="dpo base", verdict="no difference", kl=None)])
    yield "no difference", made(comparisons=[row(verdict="no difference", difference_ci=[-0.01, 0.2], kl=None)])
    yield "may be chance", made(comparisons=[row(verdict="no difference", corrected=True)])
    yield "three prompts", made(comparisons=[row(verdict="no difference", n=3, kl=None)])
    yield "no scores", made(comparisons=[row(verdict="no difference", n=0, left_out=200, mean_difference=None)])
    yield "doubted judge", made(comparisons=[row(judge="reward", doubted=True)], stages=DOUBTED)
    yield "three seeds", made(seeds=[cases.SEEDS])
    yield "seeds, may be chance", made(seeds=[{**cases.SEEDS, "verdict": "no difference", "corrected": True}])
    yield "two seeds", made(seeds=[{**cases.SEEDS, "n_seeds": 2, "ci": None, "verdict": "no difference"}])
    yield (
        "regression and gain",
        made(
            evaluation={"parents": {"sft": "base", "dpo": "sft"}},
            retained=[
                cases.retained("sft", "base", "worse"),
                cases.retained("dpo", "sft", "no difference", mean_difference=-0.01, difference_ci=[-0.05, 0.03]),
                cases.retained(
                    "sft", "base", "better", judge="sums", measure="score", policy_mean=0.7, baseline_mean=0.6
                ),
            ],
        ),
    )
    for name, interval, baseline in (
        ("better", [0.6, 0.8], 0.55), ("equal", [0.5, 0.8], 0.55), ("worse", [0.3, 0.5], 0.55),
        ("worse than chance", [0.3, 0.49], 0.3),
    ):  # fmt: skip
        stage = {**cases.REWARD, "accuracy": sum(interval) / 2, "accuracy_ci": interval, "length_baseline": baseline}
        yield f"reward model, {name}", made(comparisons=[], stages={"reward": stage})
    models = {"reward": cases.SHUT, "other": {**cases.GATE, "prompts": 50, "notes": ["its confidence is off by 12%"]}}
    yield (
        "shut gate",
        made(stages={"reward": {}, "gate": {"passed": False, "models": models, "gates": "ppo"}, "ppo": {}}),
    )
    yield (
        "over-optimised",
        made(
            stages={
                "ppo": {"tracked": POINTS, "selected_step": 20, "overoptimised": TURNED, "tracked_on": "train"},
                "dpo": {"tracked": POINTS, "selected_step": 40, "overoptimised": "no checkpoint reaches it"},
            }
        ),
    )
    yield (
        "lengths",
        made(
            comparisons=[row(mean_length=53.0)],
            policies=[cases.policy("base", finished={"mean": 0.6, "ci": None, "n": 200})],
            evaluation={"prompts_cut": 3},
        ),
    )
    yield "judges of pairs", made(comparing={"pairs": cases.JUDGE})
    yield "a group that got worse", made(groups=[row(group="refund", verdict="worse", n=34)])
    yield (
        "stages",
        made(
            stages={
                "sft": {"loss": 2.0, "loss_before": 1.5, "rows": {"demonstrations": {**cases.ROWS, "eos_lost": 9}}},
                "reward": cases.REWARD,
                "ppo": {
                    "scores": 1.31,
                    "scores_first": -0.2,
                    "episodes": 2560,
                    "rollouts": 40,
                    "warning": "replies all end",
                },
            }
        ),
    )


def terminal(report: Report, width: int = 100) -> str:
    """A report as the terminal shows it."""
    out = io.StringIO()
    Console(file=out, width=width).print(terminal_report(report))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def golden() -> str:
    """The text of the golden file."""
    parts = []
    for name, report in reports():
        lines = [f"{statement.kind}: {statement.text}" for statement in sentences.statements(report)]
        lines += [f"caveat: {caveat.text}" for caveat in caveats(report)]
        lines += [f"{stage}: {'; '.join(facts)}" for stage, part in report["stages"].items()
                  if (facts := sentences.stage_facts(part))]  # fmt: skip
        parts.append("\n".join([f"== {name}", *lines]))
    with TemporaryDirectory() as folder:
        full = build_report(fake_full_run(Path(folder) / "full", prompts=12, samples=2))
        third = build_report(fake_rounds(Path(folder) / "rounds", 3))
        labels = build_report(fake_label_run(Path(folder) / "labels", prompts=60))
        unjudged = build_report(fake_unjudged_run(Path(folder) / "unjudged"))
        started = build_report(fake_run(Path(folder) / "started", stages=["sft", "reward"]))
    lines = [f"{statement.kind}: {statement.text}" for statement in sentences.statements(labels)]
    lines_of_unjudged = [f"{statement.kind}: {statement.text}" for statement in sentences.statements(unjudged)]
    parts.append("\n".join(["== no judge", *lines_of_unjudged]))
    parts.append("\n".join(["== classifiers", *lines, *(flips.text for flips in classes.view(labels).flips)]))
    shown = (
        ("a full run", full),
        ("a third round", third),
        ("classifiers", labels),
        ("no judge", unjudged),
        ("a run not compared yet", started),
    )
    for name, report in shown:
        parts.append(f"== {name}, in the terminal\n{standfirst(report)}\n\n{terminal(report)}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(golden(), encoding="utf-8")
