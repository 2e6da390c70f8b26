"""What the sections of a report's page show, made ready for the templates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf.evaluation.attributed import Attribution
from rlhf.evaluation.compare import Comparison
from rlhf.evaluation.formatting import count, duration, estimate, number, percent
from rlhf.evaluation.gate import GateModel
from rlhf.evaluation.reward_model import SetName
from rlhf.evaluation.samples import SampledCompletion
from rlhf.evaluation.summary import Quantity
from rlhf.report import charts, diagrams, schema, sentences, tables
from rlhf.report.charts import Estimate
from rlhf.report.diff import Piece, word_diff
from rlhf.report.names import Names, capital, shown_verdict
from rlhf.report.schema import Report, ShownPrompt
from rlhf.workflow import kind_of

if TYPE_CHECKING:
    from rlhf.rewards.endpoint import JudgeReport

TONES = {
    "better": "better", "worse": "worse", "no difference": "same", "doubtful": "same", "alarm": "worse",
    "measured": "plain",
}  # fmt: skip
_SETS: tuple[tuple[SetName, str], ...] = (("chosen", "chosen"), ("rejected", "rejected"), ("policy", "policy"))
_STRONGEST = 4
"""Tokens for and against a score that are told in words."""
_WEAKEST = 0.05
"""Share of the strongest part below which a token is not told."""
_OF_TEXT = ("response/length", "response/eos_share")
_GROUP_STRIPS = 24
"""Groups in the figure of one judge; all are in report.json."""


class Forest(NamedTuple):
    """What one judge says of all pairs of policies, or several measures do."""

    caption: str
    panels: list[charts.StripPanel]
    asked: str
    """What is to be known of a judge that compares; empty for one that scores."""


def forests(report: Report) -> Iterator[Forest]:
    """Differences, and win rates as they are and at equal length, a forest a judge; several seeds in one strip.

    The measures of all rows together are one more.
    """
    for judge in report["evaluation"]["judges"] if report["evaluation"] else []:
        rows = _compared_by(report, judge)
        rates = [rate for row in rows for rate in _rates(row, report)]
        panels = [
            charts.strip_panel("Mean difference", _unit(report, judge), _differences(report, judge), _signed, zero=0.0),
            charts.strip_panel(
                "Win rate", "share of reply pairs won", rates, percent, zero=0.5, tick=charts.percent_tick
            ),
        ]
        drawn = [panel for panel in panels if panel]
        if drawn:
            asked = report["comparing"].get(judge)
            caption = f"Judged by {Names.of(report).judge(judge)}"
            yield Forest(caption, drawn, _asked(asked) if asked else "")
    measures = report["evaluation"]["measures"] if report["evaluation"] else []
    panels = [
        charts.strip_panel(capital(measure), "left less right", _differences(report, measure), _signed, zero=0.0)
        for measure in measures
    ]
    if measures:
        yield Forest("Over all rows together", [panel for panel in panels if panel], "")


def _compared_by(report: Report, judge: str) -> list[Comparison]:
    """The comparisons by a judge, or a measure, of each first seed."""
    return [row for row in report["comparisons"] if row["judge"] == judge and row["policy"] == kind_of(row["policy"])]


def _differences(report: Report, judge: str) -> list[Estimate]:
    return [_difference(row, report) for row in _compared_by(report, judge)]


def _difference(row: Comparison, report: Report) -> Estimate:
    """The mean difference of a comparison, over all its seeds where there are several."""
    label = Names.of(report).versus(row)
    for seeds in report["seeds"]:
        if (seeds["policy"], seeds["baseline"], seeds["judge"]) == (row["policy"], row["baseline"], row["judge"]):
            label += f", {count(seeds['n_seeds'], 'seed')}"
            return Estimate(label, seeds["mean"], seeds["ci"], TONES[shown_verdict(seeds)])
    return Estimate(label, row["mean_difference"], row["difference_ci"], TONES[shown_verdict(row)])


def _rates(row: Comparison, report: Report) -> Iterator[Estimate]:
    """The win rate of a comparison, and that at equal length where lengths may differ."""
    tone = TONES[shown_verdict(row)]
    yield Estimate(Names.of(report).versus(row), row["win_rate"], row["win_rate_ci"], tone)
    if not schema.answers_only(report):
        controlled, interval = row["win_rate_length_controlled"], row["win_rate_length_controlled_ci"]
        yield Estimate("at equal length", controlled, interval, f"{tone} held")


def _asked(judge: JudgeReport) -> str:
    """How far a judge that compares can be trusted, and what it cost."""
    parts = [f"{judge['model']} was asked about {count(judge['pairs'], 'pair')}, each in both orders"]
    if judge["position_bias"] is not None:
        parts.append(f"the verdict changed with the order in {percent(judge['position_bias'])}")
    if judge["unjudged"]:
        parts.append(f"{count(judge['unjudged'], 'pair')} without a readable verdict")
    if judge["failed"]:
        parts.append(f"{judge['failed']:,} questions got no answer")
    parts.append(f"{judge['prompt_tokens']:,} tokens read and {judge['completion_tokens']:,} written")
    return "; ".join(parts) + "."


def groups(report: Report) -> list[charts.StripPanel]:
    """Within each group of prompts, policies against what they came from; a panel a judge."""
    names = Names.of(report)
    panels = []
    for judge in report["evaluation"]["judges"] if report["evaluation"] else []:
        rows = [row for row in tables.own_groups(report) if row["judge"] == judge]
        strips = [
            Estimate(
                f"{names.versus(row)}: {row['group']} ({row['n']})",
                row["mean_difference"],
                row["difference_ci"],
                TONES[shown_verdict(row)],
            )
            for row in rows[:_GROUP_STRIPS]
        ]
        panels.append(charts.strip_panel(f"By {names.judge(judge)}", _unit(report, judge), strips, _signed, zero=0.0))
    return [panel for panel in panels if panel]


def quantities(report: Report) -> Iterator[charts.StripPanel]:
    """What each policy is like: scores by judge and KL; of those that write text length, endings, variety."""
    names, policies = Names.of(report), report["policies"]
    labels = [names.label(entry["policy"]) for entry in policies]
    to = [f" to {names.label(entry['kl_reference'])}" if entry["kl_reference"] else "" for entry in policies]
    shares: list[tuple[str, str, Sequence[Quantity]]] = [
        ("Ended by itself", "share of replies", [entry["finished"] for entry in policies]),
        ("Distinct words", "share of the words of a prompt's replies", [entry["distinct_1"] for entry in policies]),
        (
            "Distinct pairs of words",
            "share of the word pairs of a prompt's replies",
            [entry["distinct_2"] for entry in policies],
        ),
        (
            "Repetition",
            "share of runs of four words met before in the reply",
            [entry["repetition"] for entry in policies],
        ),
    ]

    def strips(values: Sequence[Quantity], more: Sequence[str] = ("",) * len(policies)) -> list[Estimate]:
        return [
            Estimate(f"{label}{after}", value["mean"], value["ci"], f"p{place % 6}")
            for place, (label, after, value) in enumerate(zip(labels, more, values, strict=True))
        ]

    panels = [
        charts.strip_panel(
            f"Score: {judge}", "mean score", strips([entry["scores"][judge] for entry in policies]), estimate
        )
        for judge in (policies[0]["scores"] if policies else ())
    ]
    if schema.answers_only(report):
        shares = []
    else:
        lengths = strips([entry["length"] for entry in policies])
        panels.append(charts.strip_panel("Length", "tokens a reply", lengths, _one_digit))
    panels.append(
        charts.strip_panel("KL to reference", "nats a reply", strips([entry["kl"] for entry in policies], to), estimate)
    )
    panels += [
        charts.strip_panel(title, unit, strips(values), percent, tick=charts.percent_tick)
        for title, unit, values in shares
        if any(value["mean"] for value in values)
    ]
    yield from (panel for panel in panels if panel)


class GateView(NamedTuple):
    """What is known of one reward model."""

    name: str
    model: GateModel
    panels: list[charts.StripPanel]
    diagrams: list[diagrams.Diagram]


def gates(report: Report) -> Iterator[GateView]:
    """The reward models that were held against held-out pairs."""
    for name, model in schema.gated_models(report).items():
        tone = "better" if model["passed"] else "worse"
        beside = [
            Estimate("Reward model", model["accuracy"], model["accuracy_ci"], tone),
            Estimate("Length alone", model["length_baseline"], model["length_baseline_ci"], "same"),
        ]
        lengths = [
            Estimate(
                f"{number(bucket['low'], 0, signed=True)} to {number(bucket['high'], 0, signed=True)}",
                bucket["accuracy"],
                bucket["ci"],
                "p1",
            )
            for bucket in model["by_length"]
        ]
        panels = [
            charts.strip_panel(title, unit, estimates, percent, zero=0.5, tick=charts.percent_tick)
            for title, unit, estimates in (
                ("Accuracy; the dashed line is chance", "share of held-out pairs ranked right", beside),
                (
                    "Accuracy by how much longer the chosen reply is, characters",
                    "share of the pairs ranked right",
                    lengths,
                ),
            )
        ]
        drawn = [diagrams.reliability(model["calibration"])] if model["calibration"] else []
        drawn.append(diagrams.histogram(model["scores"], _SETS))
        yield GateView(name, model, [panel for panel in panels if panel], drawn)


class TrackedView(NamedTuple):
    """The checkpoints of one stage."""

    name: str
    diagrams: list[diagrams.Diagram]


def tracked(report: Report) -> Iterator[TrackedView]:
    """The stages whose checkpoints were scored by a checkpoint judge."""
    for name, stage in report["stages"].items():
        if stage.get("tracked"):
            drawn = diagrams.tracked(stage["tracked"], stage.get("selected_step"), stage.get("checkpoint_judge"))
            yield TrackedView(name, drawn)


class StageView(NamedTuple):
    """One stage's training."""

    name: str
    facts: list[str]
    charts: list[charts.LineChart]


def stage_views(report: Report) -> Iterator[StageView]:
    """Held-out metrics and training curves of each stage that has some; none of lengths where no policy writes text."""
    untold = _OF_TEXT if schema.answers_only(report) else ()
    for name, stage in report["stages"].items():
        curves = {key: points for key, points in report["curves"].get(name, {}).items() if key not in untold}
        facts, drawn = sentences.stage_facts(stage), charts.stage_charts(curves)
        took = report["provenance"][name].get("wall_time_s")
        if facts or drawn:
            yield StageView(name, [*facts, *([duration(took)] if took else [])], drawn)


class Column(NamedTuple):
    """The completions of one policy to one prompt."""

    policy: str
    parent: str | None
    samples: Sequence[SampledCompletion]
    pieces: list[Piece] | None
    """The first completion against the parent's; None where there is none or they have little in common."""


class TokenView(NamedTuple):
    """A token of a sequence, shaded by its part in the score."""

    text: str
    tone: str
    """CSS class: whether it raises or lowers the score."""
    share: int
    """Of the strongest part of the sequence, in percent."""
    title: str


class AttributionView(NamedTuple):
    """One score and the tokens that it rests on."""

    title: str
    tokens: list[TokenView]
    strongest: str
    """The same in words."""
    table: tables.Table


def attributions(report: Report) -> list[AttributionView]:
    """The scores that were shared out among tokens."""
    names = Names.of(report)
    return [_attribution(entry, names) for entry in sorted(report["attributions"], key=lambda entry: entry["index"])]


def _attribution(entry: Attribution, names: Names) -> AttributionView:
    decided = entry["scorer"] == entry["of"]
    title = (
        f"Row {entry['index'] + 1}: {names.label(entry['scorer'])} decides for {entry['completion']}, "
        f"log odds {number(entry['score'], 2)}"
        if decided
        else f"Row {entry['index'] + 1}: {names.label(entry['scorer'])} scores {number(entry['score'], 2)} "
        f"for the reply of {names.label(entry['of'])}"
    )
    parts = list(zip(entry["tokens"], entry["leave_one_out"], entry["gradient_times_input"], strict=True))
    largest = max((abs(without) for _, without, _ in parts), default=0.0) or 1.0
    tokens = [
        TokenView(
            text, "raises" if without > 0 else "lowers", round(100 * abs(without) / largest),
            f"without it {number(-without, 2, signed=True)}; gradient × input {number(slope, 2, signed=True)}",
        )
        for text, without, slope in parts
    ]  # fmt: skip
    ordered = sorted(parts, key=lambda part: -part[1])
    ends = (*ordered[:_STRONGEST], *ordered[-_STRONGEST:][::-1])
    told = [part for part in ends if part[0].strip() and abs(part[1]) >= _WEAKEST * largest]
    sides = [
        (
            word,
            [f"“{text.strip()}” {number(without, 2, signed=True)}" for text, without, _ in told if sign * without > 0],
        )
        for word, sign in (("for it", 1), ("against it", -1))
    ]
    strongest = "; ".join(f"most {word}: {', '.join(dict.fromkeys(side))}" for word, side in sides if side)
    rows = [
        (text.strip(), number(without, 3, signed=True), number(slope, 3, signed=True))
        for text, without, slope in sorted(parts, key=lambda part: -abs(part[1]))
    ]
    return AttributionView(
        title, tokens, f"{capital(strongest)}." if strongest else "No token changes the score.",
        tables.Table(("Token", "Without it, loss of score", "Gradient × input"), rows),
    )  # fmt: skip


def confidence(reply: SampledCompletion) -> str:
    """How sure a policy was of its answer, where that is known."""
    log_prob = reply.get("log_prob")
    return "" if log_prob is None else f"{percent(math.exp(log_prob))} sure"


class PromptView(NamedTuple):
    """A prompt with the completions of each policy."""

    turns: list[dict[str, Any]]
    columns: list[Column]
    best: dict[str, float | None]
    """Highest score of the first completions, by judge; None where they are all the same."""


def prompt_view(row: ShownPrompt, policies: Sequence[str], parents: Mapping[str, str]) -> PromptView:
    """A prompt with the completions of each policy; the highest score of each judge is marked."""
    completions = row["replies"]
    columns = []
    for policy in policies:
        samples, parent = completions.get(policy, []), parents.get(policy)
        before = completions.get(parent, []) if parent is not None and parent in policies else []
        pieces = word_diff(before[0]["text"], samples[0]["text"]) if before and samples else None
        columns.append(Column(policy, parent if before and samples else None, samples, pieces))
    first = [column.samples[0]["scores"] for column in columns if column.samples]
    best = {}
    for judge in {judge for scores in first for judge in scores}:
        known = [score for scores in first if (score := scores.get(judge)) is not None]
        best[judge] = max(known) if len(set(known)) > 1 else None
    prompt = row["prompt"]
    turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    return PromptView(turns, columns, best)


def _unit(report: Report, judge: str) -> str:
    """Of a mean difference: a judge that compares gives no score."""
    return "wins less losses, share of pairs" if judge in report["comparing"] else f"{judge} score, left less right"


def _signed(mean: float | None, interval: Sequence[float] | None) -> str:
    return estimate(mean, interval, signed=True)


def _one_digit(mean: float | None, interval: Sequence[float] | None) -> str:
    return estimate(mean, interval, digits=1)
