"""What a report says in plain words: its verdicts, the one that a reader came for first.

All functions take the contents of report.json (`report.build_report`) or parts of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from rlhf.evaluation.compare import MIN_PROMPTS
from rlhf.evaluation.formatting import count, duration, estimate, number, percent
from rlhf.evaluation.seeds import MIN_SEEDS
from rlhf.report.caveats import Report, notices
from rlhf.report.phrases import (
    Kind,
    capital,
    in_sentence,
    judge_in_sentence,
    label,
    listed,
    reward_model,
    shown_verdict,
    versus,
)
from rlhf.workflow import is_stage, kind_of, stage_of

__all__ = [
    "Report", "Statement", "comparison_statement", "count", "duration", "estimate", "gate_statement", "in_sentence",
    "judge_in_sentence", "label", "ledger_phrases", "notices", "number", "percent", "retained_statements",
    "reward_model", "reward_statement", "seed_statement", "shown_verdict", "stage_facts", "statements",
    "tracked_statement", "verdicts", "versus",
]  # fmt: skip

UNITS = {"log-likelihood": "nats a token", "score": ""}
"""Units of what `retained` measures."""


class Statement(NamedTuple):
    """A verdict: what kind, the finding in words, and the numbers it rests on."""

    kind: Kind
    finding: str
    numbers: str

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.finding}: {self.numbers}."


def comparison_statement(row: Mapping[str, Any], reference: str | None = None) -> Statement:
    """One entry of `comparisons` in words.

    Args:
        row: The entry.
        reference: The policy its KL is measured to.
    """
    policy, baseline = in_sentence(row["policy"]), in_sentence(row["baseline"])
    judge = judge_in_sentence(row["judge"])
    kind = shown_verdict(row)
    finding = capital(_finding(row, policy, baseline, judge))
    if not row["n"]:
        return Statement(kind, finding, "no prompt has a score on both sides")
    numbers = (
        f"{estimate(row['mean_difference'], row['difference_ci'], signed=True)}, "
        f"wins {percent(row['win_rate'], row['win_rate_ci'])} of pairs"
    )
    if row["n"] < MIN_PROMPTS:
        numbers += f"; {count(row['n'], 'prompt')} cannot show one"
    numbers += _correction(row)
    if row["kl"] is not None:
        numbers += f"; KL {'to ' + in_sentence(reference) + ' ' if reference else ''}{number(row['kl'])} nats"
    return Statement(kind, finding, numbers)


def _finding(row: Mapping[str, Any], policy: str, baseline: str, judge: str) -> str:
    """What a comparison shows, in words; of a judge that is not shown to be right only what it says."""
    if row["verdict"] == "no difference":
        return f"no difference shown between {policy} and {baseline} on {judge}"
    if not row.get("doubted"):
        return f"{policy} is {row['verdict']} than {baseline} on {judge}"
    scores = "higher" if row["verdict"] == "better" else "lower"
    return f"{policy} scores {scores} than {baseline} on {judge}, which is not shown to tell better replies from worse"


def _correction(row: Mapping[str, Any]) -> str:
    """What is to be said where several comparisons were made and one stood out."""
    if not row.get("corrected"):
        return ""
    return (
        f"; the interval alone excludes zero; after correction for {count(row['n_comparisons'], 'comparison')} "
        "it may be chance"
    )


def seed_statement(row: Mapping[str, Any]) -> Statement:
    """One entry of `seeds` in words: what holds for the recipe over the seeds it was trained with."""
    policy, baseline = in_sentence(row["policy"]), in_sentence(row["baseline"])
    judge, seeds = judge_in_sentence(row["judge"]), count(row["n_seeds"], "seed")
    finding = f"Over {seeds} {_finding(row, policy, baseline, judge)}"
    kind = shown_verdict(row)
    if row["mean"] is None:
        return Statement(kind, finding, "no prompt has a score on both sides")
    numbers = f"{estimate(row['mean'], row['ci'], signed=True)}"
    if row["std"] is not None:
        low, high = (number(row[end], 2, signed=True) for end in ("min", "max"))
        numbers += f", single seeds from {low} to {high} (standard deviation {number(row['std'])})"
    numbers += f", wins {percent(row['win_rate'])} of pairs"
    if row["n_seeds"] < MIN_SEEDS:
        numbers += f"; {seeds} cannot show one"
    numbers += _correction(row)
    return Statement(kind, finding, numbers)


def retained_statements(report: Report) -> list[Statement]:
    """What a policy lost or gained of what it was not to lose; and, for each set, where no change is shown.

    Each policy beside what it came from; beside the base where only all steps together show a loss. Of several seeds
    the first; the table has all.
    """
    parents = (report["evaluation"] or {}).get("parents", {})
    rows = [row for row in report.get("retained", []) if row["policy"] == kind_of(row["policy"])]
    steps = [row for row in rows if row["baseline"] == parents.get(row["policy"])]
    lost = {row["judge"] for row in steps if row["verdict"] == "worse"}
    told = [row for row in steps if row["verdict"] != "no difference"]
    told += [row for row in rows if row not in steps and row["verdict"] == "worse" and row["judge"] not in lost]
    found = [_retained(row) for row in sorted(told, key=lambda row: row["verdict"] == "better")]
    same: dict[str, list[str]] = {}
    for row in steps:
        if row["verdict"] == "no difference" and row["mean_difference"] is not None:
            difference = estimate(row["mean_difference"], row["difference_ci"], signed=True)
            against = f"{label(row['policy'])} against {in_sentence(row['baseline'])} {difference}{_correction(row)}"
            same.setdefault(row["judge"], []).append(against)
    return found + [
        Statement("no difference", f"No change shown on {name}", ", ".join(of)) for name, of in same.items()
    ]


def _retained(row: Mapping[str, Any]) -> Statement:
    policy, baseline = in_sentence(row["policy"]), in_sentence(row["baseline"])
    unit = UNITS[row["measure"]]
    numbers = (
        f"{row['measure']} {number(row['baseline_mean'])} ({baseline}) to {number(row['policy_mean'])}"
        f"{' ' + unit if unit else ''}, {estimate(row['mean_difference'], row['difference_ci'], signed=True)}"
    )
    verb = "lost" if row["verdict"] == "worse" else "gained"
    return Statement(row["verdict"], capital(f"{policy} {verb} on {row['judge']}"), numbers)


def tracked_statement(name: str, metrics: Mapping[str, Any]) -> Statement | None:
    """That a stage went past the point up to which its reward and the checkpoint judge agree; None where it did not."""
    said = metrics.get("overoptimised")
    if not said:
        return None
    head, colon, rest = said.partition(": ")
    finding, numbers = (f"{label(name)} was {head}", rest) if colon else (label(name), said)
    last = metrics["tracked"][-1]["step"] if metrics.get("tracked") else None
    if metrics.get("selected_step") not in (None, last):
        numbers += f"; step {metrics['selected_step']} was kept"
    return Statement("alarm", finding, numbers)


def gate_statement(name: str, found: Mapping[str, Any]) -> Statement:
    """Whether a reward model passed its gate, beside the ruler and chance."""
    model = capital(reward_model(name))
    if not found["passed"]:
        return Statement("alarm", f"{model} did not pass the gate", "; ".join(found["reasons"]))
    many = f" ({count(found['prompts'], 'prompt')})" if found.get("prompts", found["n"]) != found["n"] else ""
    numbers = (
        f"it ranks {percent(found['accuracy'], found['accuracy_ci'])} of {found['n']:,} held-out pairs{many} rightly, "
        f"length alone {percent(found['length_baseline'], found['length_baseline_ci'])}, chance 50%"
    )
    return Statement("better", f"{model} passed the gate", numbers)


def _gate_alarms(report: Report) -> Iterator[Statement]:
    """The stages that ran although their gate was shut."""
    for guard, metrics in report["stages"].items():
        if not is_stage(guard) or stage_of(guard).guards is None or metrics.get("passed", True):
            continue
        shut = listed([reward_model(name) for name, found in metrics["models"].items() if not found["passed"]])
        for stage in report["stages"]:
            if kind_of(stage) == stage_of(guard).guards:
                finding = f"{label(stage)} maximised a reward model that did not pass the gate"
                yield Statement("alarm", finding, f"what it gained on {shut} need not be a gain")


def reward_statement(metrics: Mapping[str, Any]) -> Statement | None:
    """The reward model beside chance and length alone; better where its interval lies above both."""
    accuracy, interval = metrics.get("accuracy"), metrics.get("accuracy_ci")
    baseline = metrics.get("length_baseline")
    if accuracy is None or baseline is None:
        return None
    low, high = interval or (-math.inf, math.inf)
    bar = max(0.5, baseline)
    kind: Kind = "better" if low > bar else "worse" if high < bar else "no difference"
    other = "choosing by length alone" if low > bar or baseline > 0.5 else "chance"
    finding = {
        "better": f"The reward model is better than {other}",
        "worse": f"The reward model is worse than {other}",
        "no difference": f"No difference shown between the reward model and {other}",
    }[kind]
    pairs = f"{metrics['n']:,} held-out pairs" if metrics.get("n") is not None else "held-out pairs"
    numbers = (
        f"it prefers the chosen reply in {percent(accuracy, interval)} of {pairs}, "
        f"length in {percent(baseline, metrics.get('length_baseline_ci'))}, chance in 50%"
    )
    return Statement(kind, finding, numbers)


def statements(report: Report) -> list[Statement]:
    """All verdicts, the one a reader came for first.

    Before them, that a gate was shut and that a stage was over-optimised. The last policy before earlier ones, its
    parent before the base, judges that are not the reward model (which the policy may have been trained against) before
    it; then what was lost, and the reward model itself. What was trained with several seeds is judged over all of them.
    """
    seeds = report.get("seeds", [])
    seeded = {(row["policy"], row["baseline"], row["judge"]) for row in seeds}
    alone = [row for row in report["comparisons"] if _recipe(row) not in seeded]
    references = {entry["policy"]: entry["kl_reference"] for entry in report["policies"]}
    ranked = [
        seed_statement(row) if "n_seeds" in row else comparison_statement(row, references.get(row["policy"]))
        for row in sorted([*seeds, *alone], key=_rank_in(report))
    ]
    stages = report["stages"]
    models = stages.get("gate", {}).get("models", {})
    reward = reward_statement(stages.get("reward", {})) if "reward" not in models else None
    tracked = (tracked_statement(name, metrics) for name, metrics in stages.items())
    return [
        *_gate_alarms(report),
        *(one for one in tracked if one),
        *ranked,
        *retained_statements(report),
        *(gate_statement(name, found) for name, found in models.items()),
        *([reward] if reward else []),
    ]


def _recipe(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return kind_of(row["policy"]), kind_of(row["baseline"]), row["judge"]


def _rank_in(report: Report) -> Callable[[Mapping[str, Any]], tuple[bool, int, bool]]:
    order = {entry["policy"]: position for position, entry in enumerate(report["policies"])}
    parents = report["evaluation"].get("parents", {}) if report["evaluation"] else {}
    return lambda row: (
        row["baseline"] != parents.get(row["policy"], "base"),
        -order.get(row["policy"], 0),
        row["judge"] == "reward",
    )


def verdicts(report: Report) -> list[str]:
    """All verdicts as sentences, most important first (see `statements`)."""
    return [statement.text for statement in statements(report)]


def stage_facts(name: str, metrics: Mapping[str, Any]) -> list[str]:
    """A stage's held-out metrics as short phrases."""
    facts = []
    if metrics.get("loss") is not None:
        before = metrics.get("loss_before")
        facts.append(
            f"held-out loss {number(metrics['loss'], 3)}" + (f" (before: {number(before, 3)})" if before else "")
        )
    if metrics.get("accuracy") is not None:
        pairs = f" of {count(metrics['n'], 'pair')}" if name == "reward" and metrics.get("n") is not None else ""
        facts.append(f"held-out accuracy {percent(metrics['accuracy'], metrics.get('accuracy_ci'))}{pairs}")
    if metrics.get("rollouts") is not None:
        facts.append(
            f"score of its replies {number(metrics['scores'], 2)} (first rollout: "
            f"{number(metrics['scores_first'], 2)}) after {count(round(metrics['episodes']), 'reply')} in "
            f"{count(metrics['rollouts'], 'rollout')}"
        )
    if metrics.get("length_baseline") is not None:
        facts.append(f"by length alone {percent(metrics['length_baseline'], metrics.get('length_baseline_ci'))}")
    return facts


def ledger_phrases(rows: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Where the rows of a set went: (what, how many). The first is the sum of the others; zeros are left out."""
    reasons = sorted(rows.get("dropped", {}).items(), key=lambda item: -item[1])
    steps = [
        *((f"dropped: {reason}", n) for reason, n in reasons),
        ("to evaluate on", rows.get("evaluated", 0)),
    ]
    return [("read", rows.get("read", 0)), *(step for step in steps if step[1]), ("trained", rows.get("trained", 0))]
