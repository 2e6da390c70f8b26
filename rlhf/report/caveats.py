"""What limits the verdicts of a report, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rlhf.data.ledger import NO_FAULT
from rlhf.evaluation.compare import Comparison
from rlhf.evaluation.formatting import count, number, percent
from rlhf.report import schema
from rlhf.report.names import Names, capital
from rlhf.report.schema import Report, Rows, StageReport
from rlhf.workflow import is_base, kind_of

# Shares above which a reader should be told.
_UNFINISHED = 0.2  # completions cut by the token limit
_LONGER = 0.25  # growth of the completions over the parent's
_EOS_LOST = 0.01  # trained rows whose end was cut off
_DROPPED = 0.1  # rows dropped for a fault
_POSITION_BIAS = 0.2  # pairs whose verdict depends on which completion is shown first


class Caveat(NamedTuple):
    """One limit."""

    id: str
    """What kind of limit it is."""
    about: str
    """The stage, policy, judge or set that it limits."""
    text: str


def caveats(report: Report) -> list[Caveat]:
    """Doubted judges, missing scores, unsure judges, groups that differ, lengths, overconfidence, stages, rows."""
    names = Names.of(report)
    return [
        *_doubted(report, names),
        *_unscored(report, names),
        *_unsure_judges(report),
        *_groups(report, names),
        *_lengths(report, names),
        *_too_sure(report, names),
        *_gate_notes(report, names),
        *(caveat for name, stage in report["stages"].items() for caveat in _stage(name, stage, names)),
    ]


def unproven(report: Report) -> dict[str, str]:
    """The reward models that are not shown to be right more often than chance and length, by name, and why.

    What the gate measured of a model counts before what the stage that trained it did.
    """
    reasons = {}
    for name, stage in schema.reward_models(report).items():
        interval, baseline = stage.get("accuracy_ci"), max(0.5, stage.get("length_baseline") or 0.0)
        if interval is not None and interval[0] <= baseline:
            reasons[name] = f"right in {percent(stage.get('accuracy'), interval)} of held-out pairs, where " + (
                "chance is in 50%" if baseline == 0.5 else f"length alone is in {percent(baseline)}"
            )
    for name, model in schema.gated_models(report).items():
        reasons.pop(name, None)
        if not model["passed"]:
            reasons[name] = "it did not pass the gate"
    return reasons


def _doubted(report: Report, names: Names) -> Iterator[Caveat]:
    judges = {row["judge"] for row in report["comparisons"] if row["doubted"]}
    for judge, reason in unproven(report).items():
        if judge in judges:
            yield Caveat(
                "doubted", judge,
                f"{capital(names.reward_model(judge))} is not shown to be right more often than chance and length are "
                f"({reason}): what is better on it need not be better.",
            )  # fmt: skip


def _unscored(report: Report, names: Names) -> Iterator[Caveat]:
    for row in report["comparisons"]:
        if row["left_out"]:
            yield Caveat(
                "unscored", row["judge"],
                f"{names.label(row['policy'])} against {names.label(row['baseline'])} on {names.judge(row['judge'])}: "
                f"{count(row['left_out'], 'prompt')} of {row['n'] + row['left_out']} left out, one side has no score.",
            )  # fmt: skip


def _unsure_judges(report: Report) -> Iterator[Caveat]:
    for judge, asked in report["comparing"].items():
        bias = asked["position_bias"]
        if bias is not None and bias > _POSITION_BIAS:
            yield Caveat(
                "position bias", judge,
                f"{judge}: in {percent(bias)} of {count(asked['both_orders'], 'pair')} the verdict changed with the "
                "order of the replies; such pairs count as ties.",
            )  # fmt: skip
        if asked["unjudged"]:
            text = f"{judge}: {count(asked['unjudged'], 'pair')} of {asked['pairs']:,} got no readable verdict."
            yield Caveat("unjudged", judge, text)


def _groups(report: Report, names: Names) -> Iterator[Caveat]:
    """Groups that got worse where all prompts together did not, which a mean hides."""
    overall = {(row["policy"], row["baseline"], row["judge"]): row["verdict"] for row in report["comparisons"]}
    for row in report["groups"]:
        whole = overall.get((row["policy"], row["baseline"], row["judge"]))
        if row["verdict"] == "worse" and whole != "worse":
            yield Caveat(
                "group", row["group"],
                f"{capital(names.policy(row['policy']))} is worse than {names.policy(row['baseline'])} on "
                f"{names.judge(row['judge'])} in the group “{row['group']}” ({count(row['n'], 'prompt')}).",
            )  # fmt: skip


def _lengths(report: Report, names: Names) -> Iterator[Caveat]:
    evaluation = report["evaluation"]
    limit = evaluation["max_new_tokens"] if evaluation else None
    if evaluation and evaluation["prompts_cut"]:
        yield Caveat(
            "prompts cut", "prompts",
            f"{count(evaluation['prompts_cut'], 'prompt')} of {evaluation['prompts']} lost their beginning: with the "
            "reply they would not fit the model's context.",
        )  # fmt: skip
    for entry in report["policies"]:
        finished = entry["finished"]["mean"]
        if _first_seed(entry["policy"]) and finished is not None and 1 - finished > _UNFINISHED:
            yield Caveat(
                "unfinished", entry["policy"],
                f"{names.label(entry['policy'])}: {percent(1 - finished)} of replies did not end "
                f"{'by ' + count(limit, 'token') if limit else 'before the limit'}; their lengths are understated.",
            )  # fmt: skip
    rows = {(row["policy"], row["baseline"]): row for row in report["comparisons"] if _first_seed(row["policy"])}
    yield from (caveat for row in rows.values() if (caveat := _longer(row, names)))


def _too_sure(report: Report, names: Names) -> Iterator[Caveat]:
    """Policies whose mean confidence lies above the interval of how often they are right."""
    for entry in report["classification"]["policies"] if report["classification"] else []:
        confidence, interval = entry["confidence"], entry["accuracy_ci"]
        if _first_seed(entry["policy"]) and confidence is not None and confidence > interval[1]:
            yield Caveat(
                "too sure", entry["policy"],
                f"{capital(names.policy(entry['policy']))} is surer than it is right: mean confidence "
                f"{percent(confidence)}, right in {percent(entry['accuracy'], interval)}.",
            )  # fmt: skip


def _longer(row: Comparison, names: Names) -> Caveat | None:
    """That a policy writes more than its parent. Not for the base: it was never taught to reply."""
    if is_base(row["baseline"]):
        return None
    length, before = row["mean_length"], row["baseline_mean_length"]
    if not length or not before or length / before - 1 <= _LONGER:
        return None
    return Caveat(
        "longer", row["policy"],
        f"{names.label(row['policy'])}: replies are {percent(length / before - 1)} longer than those of "
        f"{names.label(row['baseline'])} ({number(length, 1)} and {number(before, 1)} tokens); a judge that likes "
        "length favours them.",
    )  # fmt: skip


def _first_seed(policy: str) -> bool:
    """Whether this is not a repetition of a stage with another seed, of which the same would be said."""
    return policy == kind_of(policy)


def _gate_notes(report: Report, names: Names) -> Iterator[Caveat]:
    for name, model in schema.gated_models(report).items():
        for note in model["notes"]:
            yield Caveat("gate", name, f"{capital(names.reward_model(name))}: {note}.")


def _stage(name: str, stage: StageReport, names: Names) -> Iterator[Caveat]:
    label = names.label(name)
    for kind, rows in stage.get("rows", {}).items():
        yield from _rows(label, kind, rows)
    if stage.get("tracked_on") == "train":
        yield Caveat(
            "tracked on training prompts", name,
            f"{label}: its checkpoints were scored on prompts that were trained on, since there were no others; which "
            "is best on new ones may be another.",
        )  # fmt: skip
    if skipped := stage.get("skipped_steps"):
        yield Caveat(
            "skipped", name,
            f"{label}: {count(skipped, 'step')} of {stage['steps']:,} had a loss or a gradient that is not finite and "
            "changed nothing; incident.json has their rows.",
        )  # fmt: skip
    if stage.get("warning"):
        yield Caveat("warning", name, f"{label}: {stage['warning']}.")
    before, after = stage.get("loss_before"), stage.get("loss")
    if before is not None and after is not None and after >= before:
        text = f"{label}: held-out loss did not fall ({number(before, 3)} to {number(after, 3)})."
        yield Caveat("loss", name, text)


def _rows(label: str, kind: str, rows: Rows) -> Iterator[Caveat]:
    """What became of the rows of a set, of which a stage lost many."""
    if rows.get("eos_lost", 0) > _EOS_LOST * rows.get("trained", 0):
        yield Caveat(
            "eos lost", kind,
            f"{label}: {count(rows['eos_lost'], 'row')} of {kind} lost the end-of-sequence token to truncation; "
            "a larger max_length keeps it, as far as the model reads.",
        )  # fmt: skip
    faults = {reason: n for reason, n in rows.get("dropped", {}).items() if n and reason not in NO_FAULT}
    if sum(faults.values()) > _DROPPED * rows["read"]:
        reasons = ", ".join(f"{n:,} × {reason}" for reason, n in faults.items())
        yield Caveat(
            "dropped", kind, f"{label}: many of {count(rows['read'], 'row')} of {kind} were dropped: {reasons}."
        )
