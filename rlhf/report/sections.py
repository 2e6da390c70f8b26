"""What the sections of a report's page show, made ready for the templates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf.report import charts, diagrams, sentences, tables
from rlhf.report.diff import Piece, word_diff
from rlhf.report.sentences import Report
from rlhf.workflow import kind_of

TONES = {"better": "better", "worse": "worse", "no difference": "same", "doubtful": "same", "alarm": "worse"}
_REPLIES = (("chosen", "chosen"), ("rejected", "rejected"), ("policy", "policy"))
_GROUP_STRIPS = 24
"""Groups in the figure of one judge; all are in report.json."""

Estimate = tuple[str, Mapping[str, Any], str]
"""Label, {"mean", "ci"} and tone of one strip."""


class Forest(NamedTuple):
    """What one judge says of all pairs of policies."""

    judge: str
    panels: list[charts.StripPanel]
    asked: str
    """What is to be known of a judge that compares; empty for one that scores."""


def forests(report: Report) -> Iterator[Forest]:
    """Differences, and win rates as they are and at equal length, a forest a judge; several seeds in one strip."""
    over_seeds = {(row["policy"], row["baseline"], row["judge"]): row for row in report["seeds"]}
    for judge in (report["evaluation"] or {}).get("judges", []):
        differences: list[Estimate] = []
        rates: list[Estimate] = []
        for row in report["comparisons"]:
            if row["judge"] != judge or row["policy"] != kind_of(row["policy"]):
                continue
            label, tone = sentences.versus(row), TONES[sentences.shown_verdict(row)]
            seeds = over_seeds.get((row["policy"], row["baseline"], judge))
            if seeds:
                many = f"{label}, {sentences.count(seeds['n_seeds'], 'seed')}"
                differences.append(
                    (many, {"mean": seeds["mean"], "ci": seeds["ci"]}, TONES[sentences.shown_verdict(seeds)])
                )
            else:
                differences.append((label, {"mean": row["mean_difference"], "ci": row["difference_ci"]}, tone))
            rates.append((label, {"mean": row["win_rate"], "ci": row["win_rate_ci"]}, tone))
            controlled = row["win_rate_length_controlled"], row["win_rate_length_controlled_ci"]
            rates.append(("at equal length", dict(zip(("mean", "ci"), controlled, strict=True)), f"{tone} held"))
        panels = [
            charts.strip_panel("Mean difference", _unit(report, judge), differences, _signed, zero=0.0),
            charts.strip_panel(
                "Win rate", "share of reply pairs won", rates, sentences.percent, zero=0.5, tick=sentences.percent
            ),
        ]
        found = [panel for panel in panels if panel]
        if found:
            asked = report["comparing"].get(judge)
            yield Forest(judge, found, _asked(asked) if asked else "")


def _asked(report: Mapping[str, Any]) -> str:
    """How far a judge that compares can be trusted, and what it cost."""
    parts = [f"{report['model']} was asked about {sentences.count(report['pairs'], 'pair')}, each in both orders"]
    if report["position_bias"] is not None:
        parts.append(f"the verdict changed with the order in {sentences.percent(report['position_bias'])}")
    if report["unjudged"]:
        parts.append(f"{sentences.count(report['unjudged'], 'pair')} without a readable verdict")
    if report["failed"]:
        parts.append(f"{report['failed']:,} questions got no answer")
    parts.append(f"{report['prompt_tokens']:,} tokens read and {report['completion_tokens']:,} written")
    return "; ".join(parts) + "."


def groups(report: Report) -> list[charts.StripPanel]:
    """Within each group of prompts, policies against what they came from; a panel a judge."""
    panels = []
    for judge in (report["evaluation"] or {}).get("judges", []):
        rows = [row for row in tables.own_groups(report) if row["judge"] == judge]
        strips = [
            (
                f"{sentences.versus(row)}: {row['group']} ({row['n']})",
                {"mean": row["mean_difference"], "ci": row["difference_ci"]},
                TONES[sentences.shown_verdict(row)],
            )
            for row in rows[:_GROUP_STRIPS]
        ]
        unit = _unit(report, judge)
        panels.append(charts.strip_panel(f"By {sentences.judge_in_sentence(judge)}", unit, strips, _signed, zero=0.0))
    return [panel for panel in panels if panel]


def quantities(report: Report) -> Iterator[charts.StripPanel]:
    """What each policy is like: scores by judge, length, endings, KL, variety."""
    policies = report["policies"]

    def strips(entry_of: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> list[Estimate]:
        return [(sentences.label(entry["policy"]), entry_of(entry), f"p{i % 6}") for i, entry in enumerate(policies)]

    def one_digit(mean: float | None, interval: Sequence[float] | None) -> str:
        return sentences.estimate(mean, interval, digits=1)

    panels = [
        charts.strip_panel(
            f"Score: {judge}",
            "mean score",
            strips(lambda entry, judge=judge: entry["scores"][judge]),
            sentences.estimate,
        )
        for judge in (policies[0]["scores"] if policies else ())
    ]
    kl = [(f"{name} to {sentences.label(entry['kl_reference'])}" if entry["kl_reference"] else name, one, tone)
          for entry, (name, one, tone) in zip(policies, strips(lambda entry: entry["kl"]), strict=True)]  # fmt: skip
    shares = (
        ("Ended by itself", "share of replies", "finished"),
        ("Distinct words", "share of the words of a prompt's replies", "distinct_1"),
        ("Distinct pairs of words", "share of the word pairs of a prompt's replies", "distinct_2"),
        ("Repetition", "share of runs of four words met before in the reply", "repetition"),
    )
    panels += [
        charts.strip_panel("Length", "tokens a reply", strips(lambda entry: entry["length"]), one_digit),
        charts.strip_panel("KL to reference", "nats a reply", kl, sentences.estimate),
        *(
            charts.strip_panel(
                title, unit, strips(lambda entry, key=key: entry[key]), sentences.percent, tick=sentences.percent
            )
            for title, unit, key in shares
            if any(entry[key]["mean"] for entry in policies)
        ),
    ]
    yield from (panel for panel in panels if panel)


class GateView(NamedTuple):
    """What is known of one reward model."""

    name: str
    statement: sentences.Statement
    found: Mapping[str, Any]
    panels: list[charts.StripPanel]
    diagrams: list[diagrams.Diagram]


def gates(report: Report) -> Iterator[GateView]:
    """The reward models that were held against held-out pairs."""
    for name, found in report["stages"].get("gate", {}).get("models", {}).items():
        tone = "better" if found["passed"] else "worse"
        beside = [
            ("Reward model", {"mean": found["accuracy"], "ci": found["accuracy_ci"]}, tone),
            ("Length alone", {"mean": found["length_baseline"], "ci": found.get("length_baseline_ci")}, "same"),
        ]  # fmt: skip
        lengths = [
            (
                f"{sentences.number(one['low'], 0, signed=True)} to {sentences.number(one['high'], 0, signed=True)}",
                {"mean": one["accuracy"], "ci": one["ci"]},
                "p1",
            )
            for one in found["by_length"]
        ]
        panels = [
            charts.strip_panel(
                "Accuracy; the dashed line is chance",
                "share of held-out pairs ranked right",
                beside,
                sentences.percent,
                zero=0.5,
                tick=sentences.percent,
            ),
            charts.strip_panel(
                "Accuracy by how much longer the chosen reply is, characters",
                "share of the pairs ranked right",
                lengths,
                sentences.percent,
                zero=0.5,
                tick=sentences.percent,
            ),
        ]
        drawn = [diagrams.reliability(found["calibration"])] if found["calibration"] else []
        drawn.append(diagrams.histogram(found["scores"], _REPLIES))
        yield GateView(name, sentences.gate_statement(name, found), found, [panel for panel in panels if panel], drawn)


class TrackedView(NamedTuple):
    """The checkpoints of one stage."""

    name: str
    overoptimised: str | None
    diagrams: list[diagrams.Diagram]


def tracked(report: Report) -> Iterator[TrackedView]:
    """The stages whose checkpoints were scored by a checkpoint judge."""
    for name, metrics in report["stages"].items():
        if metrics.get("tracked"):
            statement = sentences.tracked_statement(name, metrics)
            drawn = diagrams.tracked(metrics["tracked"], metrics.get("selected_step"), metrics.get("checkpoint_judge"))
            yield TrackedView(name, statement.text if statement else None, drawn)


def stage_views(report: Report) -> Iterator[dict[str, Any]]:
    """Held-out metrics and training curves of each stage that has some."""
    for name, metrics in report["stages"].items():
        facts, drawn = sentences.stage_facts(name, metrics), charts.stage_charts(report["curves"].get(name, {}))
        took = report["provenance"][name].get("wall_time_s")
        if facts or drawn:
            yield {"name": name, "facts": [*facts, *([sentences.duration(took)] if took else [])], "charts": drawn}


class Column(NamedTuple):
    """The replies of one policy to one prompt."""

    policy: str
    parent: str | None
    samples: Sequence[Mapping[str, Any]]
    pieces: list[Piece] | None
    """The first reply against the parent's; None where there is none or they have little in common."""


def prompt_view(row: Mapping[str, Any], policies: Sequence[str], parents: Mapping[str, str]) -> dict[str, Any]:
    """A prompt with the replies of each policy; the highest score of each judge is marked."""
    replies = row["replies"]
    columns = []
    for policy in policies:
        samples, parent = replies.get(policy, []), parents.get(policy)
        before = replies.get(parent, []) if parent in policies else []
        pieces = word_diff(before[0]["text"], samples[0]["text"]) if before and samples else None
        columns.append(Column(policy, parent if before and samples else None, samples, pieces))
    first = [column.samples[0].get("scores") or {} for column in columns if column.samples]
    best = {}
    for judge in {judge for scores in first for judge in scores}:
        known = [scores[judge] for scores in first if scores.get(judge) is not None]
        best[judge] = max(known) if len(set(known)) > 1 else None
    prompt = row["prompt"]
    turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"index": row["index"], "turns": turns, "columns": columns, "best": best}


def _unit(report: Report, judge: str) -> str:
    """Of a mean difference: a judge that compares gives no score."""
    return "wins less losses, share of pairs" if judge in report["comparing"] else f"{judge} score, left less right"


def _signed(mean: float | None, interval: Sequence[float] | None) -> str:
    return sentences.estimate(mean, interval, signed=True)
