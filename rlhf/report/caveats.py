"""What limits the verdicts of a report, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.data.ledger import NO_FAULT
from rlhf.evaluation.formatting import count, number, percent
from rlhf.evaluation.gate_verdict import unproven
from rlhf.report.phrases import capital, in_sentence, judge_in_sentence, label, reward_model
from rlhf.workflow import is_base, kind_of

Report = Mapping[str, Any]

# Shares above which a reader should be told.
_UNFINISHED = 0.2  # replies cut by the token limit
_LONGER = 0.25  # growth of the replies over the parent's
_EOS_LOST = 0.01  # trained rows whose end was cut off
_DROPPED = 0.1  # rows dropped for a fault
_POSITION_BIAS = 0.2  # pairs whose verdict depends on which reply is shown first


def notices(report: Report) -> list[str]:
    """What limits the verdicts: missing scores, unsure judges, groups that differ, replies, rows and losses."""
    return [
        *_doubt_notices(report),
        *_score_notices(report),
        *_judge_notices(report),
        *_group_notices(report),
        *_length_notices(report),
        *_gate_notices(report),
        *_stage_notices(report),
    ]


def _doubt_notices(report: Report) -> list[str]:
    doubted = {row["judge"] for row in report["comparisons"] if row.get("doubted")}
    return [
        f"{capital(reward_model(name))} is not shown to be right more often than chance and length are ({why}): "
        "what is better on it need not be better."
        for name, why in unproven(report["stages"]).items()
        if name in doubted
    ]


def _score_notices(report: Report) -> list[str]:
    found = []
    for row in report["comparisons"]:
        if row["left_out"]:
            found.append(
                f"{label(row['policy'])} against {label(row['baseline'])} on {judge_in_sentence(row['judge'])}: "
                f"{count(row['left_out'], 'prompt')} of {row['n'] + row['left_out']} left out, one side has no score."
            )
    return found


def _judge_notices(report: Report) -> list[str]:
    found = []
    for name, asked in report.get("comparing", {}).items():
        bias, unjudged = asked.get("position_bias"), asked.get("unjudged") or 0
        if bias is not None and bias > _POSITION_BIAS:
            found.append(
                f"{name}: in {percent(bias)} of {count(asked['both_orders'], 'pair')} the verdict changed with the "
                "order of the replies; such pairs count as ties."
            )
        if unjudged:
            found.append(f"{name}: {count(unjudged, 'pair')} of {asked['pairs']:,} got no readable verdict.")
    return found


def _group_notices(report: Report) -> list[str]:
    """Groups that go against all prompts, which a mean hides."""
    overall = {(row["policy"], row["baseline"], row["judge"]): row["verdict"] for row in report["comparisons"]}
    found = []
    for row in report.get("groups", []):
        whole = overall.get((row["policy"], row["baseline"], row["judge"]))
        if row["verdict"] == "worse" and whole != "worse":
            found.append(
                f"{capital(in_sentence(row['policy']))} is worse than {in_sentence(row['baseline'])} on "
                f"{judge_in_sentence(row['judge'])} in the group “{row['group']}” ({count(row['n'], 'prompt')})."
            )
    return found


def _gate_notices(report: Report) -> list[str]:
    models = report["stages"].get("gate", {}).get("models", {})
    return [f"{capital(reward_model(name))}: {note}." for name, found in models.items() for note in found["notes"]]


def _length_notices(report: Report) -> list[str]:
    found = []
    evaluation = report["evaluation"] or {}
    limit = evaluation.get("max_new_tokens")
    if evaluation.get("prompts_cut"):
        found.append(
            f"{count(evaluation['prompts_cut'], 'prompt')} of {evaluation['prompts']} lost their beginning: "
            "with the reply they would not fit the model's context."
        )
    for entry in (one for one in report["policies"] if _first_seed(one)):
        finished = entry["finished"]["mean"]
        if finished is not None and 1 - finished > _UNFINISHED:
            found.append(
                f"{label(entry['policy'])}: {percent(1 - finished)} of replies did not end "
                f"{'by ' + count(limit, 'token') if limit else 'before the limit'}; their lengths are understated."
            )
    pairs = {
        (row["policy"], row["baseline"]): (row["mean_length"], row["baseline_mean_length"])
        for row in report["comparisons"]
        if _first_seed(row)
    }
    for (policy, baseline), (length, before) in pairs.items():
        # Not for the base: how long a model talks that was never taught to reply says nothing.
        if not is_base(baseline) and length and before and length / before - 1 > _LONGER:
            found.append(
                f"{label(policy)}: replies are {percent(length / before - 1)} longer than those of {label(baseline)} "
                f"({number(length, 1)} and {number(before, 1)} tokens); a judge that likes length favours them."
            )
    return found


def _first_seed(row: Mapping[str, Any]) -> bool:
    """Whether this is the policy itself, and not the same recipe with another seed, of which the same is to be said."""
    return bool(row["policy"] == kind_of(row["policy"]))


def _stage_notices(report: Report) -> list[str]:
    found = []
    for name, metrics in report["stages"].items():
        for kind, rows in metrics.get("rows", {}).items():
            if rows.get("eos_lost", 0) > _EOS_LOST * rows.get("trained", 0):
                found.append(
                    f"{label(name)}: {count(rows['eos_lost'], 'row')} of {kind} lost the end-of-sequence token to "
                    "truncation; a larger max_length keeps it."
                )
            faults = {reason: n for reason, n in rows.get("dropped", {}).items() if reason not in NO_FAULT}
            if sum(faults.values()) > _DROPPED * rows["read"]:
                reasons = ", ".join(f"{n:,} {reason}" for reason, n in faults.items())
                found.append(f"{label(name)}: many of {count(rows['read'], 'row')} of {kind} were dropped: {reasons}.")
        if metrics.get("tracked_on") == "train":
            found.append(
                f"{label(name)}: its checkpoints were scored on prompts that were trained on, since there were no "
                "others; which is best on new ones may be another."
            )
        if metrics.get("warning"):
            found.append(f"{label(name)}: {metrics['warning']}.")
        before, after = metrics.get("loss_before"), metrics.get("loss")
        if before is not None and after is not None and after >= before:
            found.append(f"{label(name)}: held-out loss did not fall ({number(before, 3)} to {number(after, 3)}).")
    return found
