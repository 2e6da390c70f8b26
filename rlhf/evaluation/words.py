"""What a report says in plain words: numbers as text, verdicts, and what a reader must know to trust them.

All functions take the contents of report.json (`report.build_report`) or parts of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rlhf.evaluation.compare import MIN_PROMPTS

Report = Mapping[str, Any]
Kind = Literal["better", "worse", "no difference"]

_LABELS = {"base": "Base", "sft": "SFT", "dpo": "DPO", "ppo": "PPO", "reward": "Reward model"}
# Shares above which a reader should be told.
_UNFINISHED = 0.2  # replies cut by the token limit
_LONGER = 0.25  # growth of the replies over the parent's
_EOS_LOST = 0.01  # trained rows whose end was cut off
_DROPPED = 0.1  # rows dropped for a fault
_NO_FAULT = {"duplicate", "prompt held out", "sampled out"}  # reasons with which nothing is wrong
_PLURALS = {
    "rollout": "rollouts",
    "reply": "replies",
    "row": "rows",
    "prompt": "prompts",
    "token": "tokens",
    "pair": "pairs",
}


class Statement(NamedTuple):
    """A verdict: what kind, the finding in words, and the numbers it rests on."""

    kind: Kind
    finding: str
    numbers: str

    @property
    def text(self) -> str:
        """One line."""
        return f"{self.finding}: {self.numbers}."


def label(name: str) -> str:
    """A stage, policy or judge as it is written in a table."""
    return _LABELS.get(name, name)


def in_sentence(name: str) -> str:
    """A policy inside a sentence."""
    return "the base model" if name == "base" else label(name)


def judge_in_sentence(name: str) -> str:
    """A judge inside a sentence."""
    return "the reward model" if name == "reward" else name


def number(value: float | None, digits: int | None = None, signed: bool = False) -> str:
    """A number with a true minus sign; about three significant digits unless told; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if digits is None:
        digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
        if value and abs(value) < 0.01:
            return f"{value:.1e}".replace("-", "−").replace("e−0", "e−")
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return (text if float(text.replace(",", "")) else text.lstrip("+-")).replace("-", "−")


def estimate(
    value: float | None, interval: Sequence[float] | None, digits: int | None = None, signed: bool = False
) -> str:
    """An estimate with its interval, to the digits the interval deserves: `+0.12 [0.09, 0.15]`.

    Further digits are added where rounding would put an end of the interval on zero that is not there.
    """
    if interval is None:
        return number(value, digits, signed)
    if digits is None:
        width = abs(interval[1] - interval[0])
        digits = min(4, max(2, math.ceil(-math.log10(width)))) if width > 0 else 2
        while digits < 6 and any(end and not round(end, digits) for end in interval):
            digits += 1
    return f"{number(value, digits, signed)} [{number(interval[0], digits)}, {number(interval[1], digits)}]"


def percent(share: float | None, interval: Sequence[float] | None = None) -> str:
    """A share as whole percent: `71% [66%, 75%]`."""
    if share is None or not math.isfinite(share):
        return "–"
    text = f"{100 * share:.0f}%"
    return text if interval is None else f"{text} [{100 * interval[0]:.0f}%, {100 * interval[1]:.0f}%]"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `41 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if minutes:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def count(n: int, noun: str) -> str:
    """`1 reply`, `1,200 replies`."""
    return f"{n:,} {noun if n == 1 else _PLURALS[noun]}"


def comparison_statement(row: Mapping[str, Any], reference: str | None = None) -> Statement:
    """One entry of `comparisons` in words.

    Args:
        row: The entry.
        reference: The policy its KL is measured to.
    """
    policy, baseline = in_sentence(row["policy"]), in_sentence(row["baseline"])
    judge = judge_in_sentence(row["judge"])
    if row["verdict"] == "no difference":
        finding = f"No difference shown between {policy} and {baseline} on {judge}"
    else:
        finding = f"{policy} is {row['verdict']} than {baseline} on {judge}"
    if not row["n"]:
        return Statement(row["verdict"], finding, "no prompt has a score on both sides")
    numbers = (
        f"{estimate(row['mean_difference'], row['difference_ci'], signed=True)}, "
        f"wins {percent(row['win_rate'], row['win_rate_ci'])} of pairs"
    )
    if row["n"] < MIN_PROMPTS:
        numbers += f"; {count(row['n'], 'prompt')} cannot show one"
    if row["kl"] is not None:
        numbers += f"; KL {'to ' + in_sentence(reference) + ' ' if reference else ''}{number(row['kl'])} nats"
    return Statement(row["verdict"], finding[0].upper() + finding[1:], numbers)


def reward_statement(metrics: Mapping[str, Any]) -> Statement | None:
    """The reward model beside the length-only baseline; better where its interval lies above that baseline."""
    accuracy, interval = metrics.get("accuracy"), metrics.get("accuracy_ci")
    baseline = metrics.get("length_baseline")
    if accuracy is None or baseline is None:
        return None
    low, high = interval or (-math.inf, math.inf)
    kind: Kind = "better" if low > baseline else "worse" if high < baseline else "no difference"
    finding = {
        "better": "The reward model is better than choosing by length alone",
        "worse": "The reward model is worse than choosing by length alone",
        "no difference": "No difference shown between the reward model and choosing by length alone",
    }[kind]
    pairs = f"{metrics['n']:,} held-out pairs" if metrics.get("n") is not None else "held-out pairs"
    numbers = (
        f"it prefers the chosen reply in {percent(accuracy, interval)} of {pairs}, "
        f"length in {percent(baseline, metrics.get('length_baseline_ci'))}"
    )
    return Statement(kind, finding, numbers)


def statements(report: Report) -> list[Statement]:
    """All verdicts, the one a reader came for first.

    The last policy before earlier ones, its parent before the base, judges that are not the reward model (which the
    policy may have been trained against) before it; the reward model itself after these.
    """
    order = {entry["policy"]: position for position, entry in enumerate(report["policies"])}
    references = {entry["policy"]: entry["kl_reference"] for entry in report["policies"]}
    parents = report["evaluation"].get("parents", {}) if report["evaluation"] else {}
    ranked = sorted(
        report["comparisons"],
        key=lambda row: (
            row["baseline"] != parents.get(row["policy"], "base"),
            -order.get(row["policy"], 0),
            row["judge"] == "reward",
        ),
    )
    found = [comparison_statement(row, references.get(row["policy"])) for row in ranked]
    reward = reward_statement(report["stages"].get("reward", {}))
    return [*found, *([reward] if reward else [])]


def verdicts(report: Report) -> list[str]:
    """All verdicts as sentences, most important first (see `statements`)."""
    return [statement.text for statement in statements(report)]


def notices(report: Report) -> list[str]:
    """What limits the verdicts: prompts without a score, replies cut short or grown longer, lost ends, a worse loss."""
    return [*_score_notices(report), *_length_notices(report), *_stage_notices(report)]


def _score_notices(report: Report) -> list[str]:
    found = []
    for row in report["comparisons"]:
        if row["left_out"]:
            found.append(
                f"{label(row['policy'])} against {label(row['baseline'])} on {judge_in_sentence(row['judge'])}: "
                f"{count(row['left_out'], 'prompt')} of {row['n'] + row['left_out']} left out, one side has no score."
            )
    return found


def _length_notices(report: Report) -> list[str]:
    found = []
    evaluation = report["evaluation"] or {}
    limit = evaluation.get("max_new_tokens")
    if evaluation.get("prompts_cut"):
        found.append(
            f"{count(evaluation['prompts_cut'], 'prompt')} of {evaluation['prompts']} lost their beginning: "
            "with the reply they would not fit the model's context."
        )
    for entry in report["policies"]:
        finished = entry["finished"]["mean"]
        if finished is not None and 1 - finished > _UNFINISHED:
            found.append(
                f"{label(entry['policy'])}: {percent(1 - finished)} of replies did not end "
                f"{'by ' + count(limit, 'token') if limit else 'before the limit'}; their lengths are understated."
            )
    pairs = {
        (row["policy"], row["baseline"]): (row["mean_length"], row["baseline_mean_length"])
        for row in report["comparisons"]
    }
    for (policy, baseline), (length, before) in pairs.items():
        # Not for the base: how long a model talks that was never taught to reply says nothing.
        if baseline != "base" and length and before and length / before - 1 > _LONGER:
            found.append(
                f"{label(policy)}: replies are {percent(length / before - 1)} longer than those of {label(baseline)} "
                f"({number(length, 1)} and {number(before, 1)} tokens); a judge that likes length favours them."
            )
    return found


def _stage_notices(report: Report) -> list[str]:
    found = []
    for name, metrics in report["stages"].items():
        for kind, rows in metrics.get("rows", {}).items():
            if rows.get("eos_lost", 0) > _EOS_LOST * rows.get("trained", 0):
                found.append(
                    f"{label(name)}: {count(rows['eos_lost'], 'row')} of {kind} lost the end-of-sequence token to "
                    "truncation; a larger max_length keeps it."
                )
            faults = {reason: n for reason, n in rows.get("dropped", {}).items() if reason not in _NO_FAULT}
            if sum(faults.values()) > _DROPPED * rows["read"]:
                reasons = ", ".join(f"{n:,} {reason}" for reason, n in faults.items())
                found.append(f"{label(name)}: many of {count(rows['read'], 'row')} of {kind} were dropped: {reasons}.")
        if metrics.get("warning"):
            found.append(f"{label(name)}: {metrics['warning']}.")
        before, after = metrics.get("loss_before"), metrics.get("loss")
        if before is not None and after is not None and after >= before:
            found.append(f"{label(name)}: held-out loss did not fall ({number(before, 3)} to {number(after, 3)}).")
    return found


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
