"""The verdicts of a report as sentences, the most wanted first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from rlhf.evaluation.compare import MIN_PROMPTS, Comparison
from rlhf.evaluation.formatting import count, estimate, number, percent
from rlhf.evaluation.gate import GateModel
from rlhf.evaluation.regressions import Regression
from rlhf.evaluation.robustness import Change, PerturbedComparison
from rlhf.evaluation.seeds import MIN_SEEDS, SeedSummary
from rlhf.report import schema, unjudged
from rlhf.report.names import Kind, Names, Row, Statement, capital, listed, shown_verdict
from rlhf.report.schema import Ranked, Report, Rows, StageReport
from rlhf.workflow import BASE, kind_of

UNITS = {"log-likelihood": "nats a token", "score": ""}
"""Units of what `retained` measures."""


def statements(report: Report) -> list[Statement]:
    """All verdicts, the most wanted first.

    Before them, that a gate was shut and that a stage was over-optimised. The last policy before earlier ones, its
    parent before the base, judges that are not the run's own reward models (which the policy may have been trained
    against) before these; then regressions, and the reward models themselves. What was trained with several seeds is
    judged over all of them.
    """
    names = Names.of(report)
    tracked = (tracked_statement(name, stage, names) for name, stage in report["stages"].items())
    gated = schema.gated_models(report)
    own = (reward_statement(name, stage, names) for name, stage in schema.reward_models(report).items())
    return [
        *_shut_gates(report, names),
        *(statement for statement in tracked if statement),
        *unjudged.statements(report),
        *_round_statements(report, names),
        *_compared(report, names),
        *robustness_statements(report, names),
        *retained_statements(report, names),
        *(gate_statement(name, model, names) for name, model in gated.items()),
        *(statement for statement in own if statement and statement.id[1] not in gated),
    ]


def _round_statements(report: Report, names: Names) -> list[Statement]:
    """The policy of this round beside that of the round before, and of the first where that is another."""
    if report["rounds"] is None:
        return []
    rows = [row for row in report["rounds"]["comparisons"] if row["policy"] == f"round {report['rounds']['round']}"]
    return [comparison_statement(row, names)._replace(id=("round", row["baseline"], row["judge"])) for row in rows]


def _compared(report: Report, names: Names) -> list[Statement]:
    """The comparisons over all prompts, of what was trained with several seeds over all of them."""
    seeded = {(row["policy"], row["baseline"], row["judge"]) for row in report["seeds"]}
    alone = [row for row in report["comparisons"] if _recipe(row) not in seeded]
    written: list[tuple[Row, Statement]] = [(row, seed_statement(row, names)) for row in report["seeds"]]
    written += [(row, comparison_statement(row, names)) for row in alone]
    rank = _rank_in(report)
    statements = [statement for _, statement in sorted(written, key=lambda item: rank(item[0]))]
    references = {entry["policy"]: entry["kl_reference"] for entry in report["policies"]}
    distances = {row["policy"]: _distance(row, names, references.get(row["policy"])) for row in alone}
    return [
        statement._replace(numbers=statement.numbers + distances.pop(statement.id[1], ""))
        if statement.id[0] == "comparison"
        else statement
        for statement in statements
    ]


def _distance(row: Comparison, names: Names, reference: str | None) -> str:
    """How far the policy is from its reference; said once of each policy."""
    if row["kl"] is None or not row["n"]:
        return ""
    return f"; KL {'to ' + names.policy(reference) + ' ' if reference else ''}{number(row['kl'])} nats a reply"


def _recipe(row: Row) -> tuple[str, str, str]:
    return kind_of(row["policy"]), kind_of(row["baseline"]), row["judge"]


def _rank_in(report: Report) -> Callable[[Row], tuple[bool, int, bool]]:
    order = {entry["policy"]: position for position, entry in enumerate(report["policies"])}
    parents = schema.parents(report)
    own = schema.reward_models(report)
    return lambda row: (
        row["baseline"] != parents.get(row["policy"], BASE),
        -order.get(row["policy"], 0),
        row["judge"] in own,
    )


def comparison_statement(row: Comparison, names: Names) -> Statement:
    """One entry of `comparisons` in words."""
    about = ("comparison", row["policy"], row["baseline"], row["judge"])
    finding = capital(_finding(row, names))
    if not row["n"]:
        return Statement(about, shown_verdict(row), finding, "no prompt has a score on both sides")
    numbers = f"{estimate(row['mean_difference'], row['difference_ci'], signed=True)}, "
    if row["win_rate"] is None:
        numbers += f"{number(row['policy_mean'])} and {number(row['baseline_mean'])}"
    else:
        numbers += f"wins {percent(row['win_rate'], row['win_rate_ci'])} of pairs"
    if row["n"] < MIN_PROMPTS:
        numbers += f"; {count(row['n'], 'prompt')} cannot show one"
    return Statement(about, shown_verdict(row), finding, numbers + _correction(row))


def _finding(row: Row, names: Names) -> str:
    """What a comparison shows, in words; of a judge that is not shown to be right only what it says."""
    policy, baseline, judge = names.policy(row["policy"]), names.policy(row["baseline"]), names.judge(row["judge"])
    if row["verdict"] == "no difference":
        return f"no difference shown between {policy} and {baseline} on {judge}"
    if not row["doubted"]:
        return f"{policy} is {row['verdict']} than {baseline} on {judge}"
    scores = "higher" if row["verdict"] == "better" else "lower"
    return f"{policy} scores {scores} than {baseline} on {judge}, which is not shown to tell better replies from worse"


def _correction(row: Row) -> str:
    """That a difference may be chance, since several comparisons were made."""
    if not row["corrected"]:
        return ""
    return (
        f"; the interval alone excludes zero; after correction for {count(row['n_comparisons'], 'comparison')} "
        "it may be chance"
    )


def seed_statement(row: SeedSummary, names: Names) -> Statement:
    """One entry of `seeds` in words: what holds for the recipe over the seeds it was trained with."""
    about = ("seeds", row["policy"], row["baseline"], row["judge"])
    seeds = count(row["n_seeds"], "seed")
    finding = f"Over {seeds} {_finding(row, names)}"
    if row["mean"] is None:
        return Statement(about, shown_verdict(row), finding, "no prompt has a score on both sides")
    numbers = f"{estimate(row['mean'], row['ci'], signed=True)}"
    if row["std"] is not None:
        low, high = (number(end, 2, signed=True) for end in (row["min"], row["max"]))
        numbers += f", single seeds from {low} to {high} (standard deviation {number(row['std'])})"
    if row["win_rate"] is not None:
        numbers += f", wins {percent(row['win_rate'])} of pairs"
    if row["n_seeds"] < MIN_SEEDS:
        numbers += f"; {seeds} cannot show one"
    return Statement(about, shown_verdict(row), finding, numbers + _correction(row))


def robustness_statements(report: Report, names: Names) -> list[Statement]:
    """On perturbed inputs, each policy against what it came from: a statement a judge, of all perturbations."""
    if report["robustness"] is None:
        return []
    parents = schema.parents(report)
    changes = {(row["policy"], row["judge"], row["perturbation"]): row for row in report["robustness"]["changes"]}
    sides: dict[tuple[str, str], list[PerturbedComparison]] = {}
    for row in report["robustness"]["comparisons"]:
        if _first_seed(row) and row["baseline"] == parents.get(row["policy"], BASE):
            sides.setdefault((row["policy"], row["judge"]), []).append(row)
    return [_on_perturbed(rows, changes, names) for rows in sides.values()]


def _on_perturbed(
    rows: Sequence[PerturbedComparison], changes: Mapping[tuple[str, str, str], Change], names: Names
) -> Statement:
    policy, judge, baseline = rows[0]["policy"], rows[0]["judge"], names.policy(rows[0]["baseline"])
    verdicts = {row["verdict"] for row in rows}
    of = f"{names.policy(policy)} and {baseline} on {names.judge(judge)}"
    if verdicts == {"no difference"}:
        kind, finding = "no difference", f"on perturbed inputs no difference shown between {of}"
    else:
        kind = "worse" if "worse" in verdicts else "better"
        shown = listed([shown_name(row["perturbation"]) for row in rows if row["verdict"] == kind])
        finding = f"on inputs with {shown} {names.policy(policy)} is {kind} than {baseline} on {names.judge(judge)}"
    numbers = []
    for row in rows:
        change = changes[policy, judge, row["perturbation"]]
        against = estimate(row["mean_difference"], row["difference_ci"], signed=True)
        own = f"its own score {number(change['clean_mean'])} to {number(change['perturbed_mean'])}"
        numbers.append(f"{shown_name(row['perturbation'])} {against}, {own}")
    return Statement(("robustness", policy, judge), cast(Kind, kind), capital(finding), "; ".join(numbers))


def shown_name(perturbation: str) -> str:
    """A perturbation in words."""
    return {"case": "other case", "drop_words": "dropped words"}.get(perturbation, perturbation)


def retained_statements(report: Report, names: Names) -> list[Statement]:
    """What a policy got worse or better at of `evaluate.retain`; and, for each set, where no change is shown."""
    same: dict[str, list[str]] = {}
    for row in _steps(report):
        if row["verdict"] == "no difference" and row["mean_difference"] is not None:
            difference = estimate(row["mean_difference"], row["difference_ci"], signed=True)
            against = f"{names.label(row['policy'])} against {names.policy(row['baseline'])} {difference}"
            same.setdefault(row["judge"], []).append(against + _correction(row))
    return [_change(row, names) for row in retained_changes(report)] + [
        Statement(("retained", name), "no difference", f"No change shown on {name}", ", ".join(of_set))
        for name, of_set in same.items()
    ]


def retained_changes(report: Report) -> list[Regression]:
    """The comparisons on the sets of `evaluate.retain` that show a change, what got worse first.

    Each policy beside what it came from; beside the base where only all steps together show a regression.
    """
    steps = _steps(report)
    worse = {row["judge"] for row in steps if row["verdict"] == "worse"}
    changed = [row for row in steps if row["verdict"] != "no difference"]
    changed += [
        row
        for row in report["retained"]
        if _first_seed(row) and row not in steps and row["verdict"] == "worse" and row["judge"] not in worse
    ]
    return sorted(changed, key=lambda row: row["verdict"] == "better")


def _steps(report: Report) -> list[Regression]:
    """The comparisons with what each policy came from; of several seeds the first, the table has all."""
    parents = schema.parents(report)
    return [row for row in report["retained"] if _first_seed(row) and row["baseline"] == parents.get(row["policy"])]


def _first_seed(row: Row) -> bool:
    return row["policy"] == kind_of(row["policy"])


def _change(row: Regression, names: Names) -> Statement:
    baseline = names.policy(row["baseline"])
    unit = UNITS[row["measure"]]
    numbers = (
        f"{row['measure']} {number(row['baseline_mean'])} ({baseline}) to {number(row['policy_mean'])}"
        f"{' ' + unit if unit else ''}, {estimate(row['mean_difference'], row['difference_ci'], signed=True)}"
    )
    finding = capital(f"{names.policy(row['policy'])} got {row['verdict']} on {row['judge']}")
    return Statement(("retained", row["judge"], row["policy"], row["baseline"]), row["verdict"], finding, numbers)


def tracked_statement(name: str, stage: StageReport, names: Names) -> Statement | None:
    """That a stage went past the point up to which its reward and the checkpoint judge agree, where it did."""
    warning = stage.get("overoptimised")
    if not warning:
        return None
    head, colon, rest = warning.partition(": ")
    finding, numbers = (f"{names.label(name)} was {head}", rest) if colon else (names.label(name), warning)
    last = stage["tracked"][-1]["step"] if stage.get("tracked") else None
    if stage.get("selected_step") not in (None, last):
        numbers += f"; step {stage['selected_step']} was kept"
    return Statement(("tracked", name), "alarm", finding, numbers)


def gate_statement(name: str, model: GateModel, names: Names) -> Statement:
    """Whether a reward model passed its gate, beside the length baseline and chance."""
    title = capital(names.reward_model(name))
    if not model["passed"]:
        return Statement(("gate", name), "alarm", f"{title} did not pass the gate", "; ".join(model["reasons"]))
    prompts = f" ({count(model['prompts'], 'prompt')})" if model["prompts"] != model["n"] else ""
    numbers = (
        f"it ranks {percent(model['accuracy'], model['accuracy_ci'])} of {model['n']:,} held-out pairs{prompts} "
        f"rightly, length alone {percent(model['length_baseline'], model['length_baseline_ci'])}, chance 50%"
    )
    return Statement(("gate", name), "better", f"{title} passed the gate", numbers)


def _shut_gates(report: Report, names: Names) -> Iterator[Statement]:
    """The stages that ran although their gate was shut."""
    for _, gate in schema.gates(report):
        if gate["passed"]:
            continue
        failed = listed([names.reward_model(name) for name, model in gate["models"].items() if not model["passed"]])
        for stage in report["stages"]:
            if kind_of(stage) in (gate.get("gates"), *gate.get("also_gates", [])) and _maximises(report, stage, gate):
                finding = f"{names.label(stage)} maximised a reward model that did not pass the gate"
                yield Statement(
                    ("shut gate", stage), "alarm", finding, f"what it gained on {failed} need not be a gain"
                )


def _maximises(report: Report, stage: str, gate: StageReport) -> bool:
    """Whether a stage maximises a reward model that did not pass; of a gate for one stage alone it is so."""
    if not gate.get("also_gates"):
        return True
    shut = {name for name, model in gate["models"].items() if not model["passed"]}
    provenance = report["provenance"][stage]
    settings = (provenance.get("config") or {}).get("trainer") or {}
    return bool(shut & {*provenance.get("parents", ()), *(settings.get("rewards") or {})})


def reward_statement(name: str, stage: StageReport, names: Names) -> Statement | None:
    """A reward model beside chance and length alone; better where its interval lies above both."""
    accuracy, interval, baseline = stage.get("accuracy"), stage.get("accuracy_ci"), stage.get("length_baseline")
    if accuracy is None or baseline is None:
        return None
    low, high = interval or (-math.inf, math.inf)
    bar = max(0.5, baseline)
    kind: Kind = "better" if low > bar else "worse" if high < bar else "no difference"
    model, other = names.reward_model(name), "choosing by length alone" if low > bar or baseline > 0.5 else "chance"
    if kind == "no difference":
        finding = f"No difference shown between {model} and {other}"
    else:
        finding = f"{capital(model)} is {kind} than {other}"
    pairs = f"{stage['n']:,} held-out pairs" if stage.get("n") is not None else "held-out pairs"
    numbers = (
        f"it prefers the chosen reply in {percent(accuracy, interval)} of {pairs}, "
        f"length in {percent(baseline, stage.get('length_baseline_ci'))}, chance in 50%"
    )
    return Statement(("reward model", name), kind, finding, numbers)


def stage_facts(stage: StageReport) -> list[str]:
    """A stage's held-out metrics as short phrases."""
    facts = []
    if stage.get("loss") is not None:
        before = stage.get("loss_before")
        facts.append(
            f"held-out loss {number(stage['loss'], 3)}" + (f" (before: {number(before, 3)})" if before else "")
        )
    if stage.get("accuracy") is not None:
        pairs = f" of {count(stage['n'], 'pair')}" if stage.get("n") is not None else ""
        facts.append(f"held-out accuracy {percent(stage['accuracy'], stage.get('accuracy_ci'))}{pairs}")
    if stage.get("rollouts") is not None:
        facts.append(
            f"score of its replies {number(stage['scores'], 2)} (first rollout: {number(stage['scores_first'], 2)}) "
            f"after {count(round(stage['episodes']), 'reply')} in {count(stage['rollouts'], 'rollout')}"
        )
    if (ranked := stage.get("ranked")) is not None:
        facts += _ranked_facts(ranked)
    if stage.get("length_baseline") is not None:
        facts.append(f"by length alone {percent(stage['length_baseline'], stage.get('length_baseline_ci'))}")
    return facts


def _ranked_facts(ranked: Ranked) -> list[str]:
    """What was kept of replies that were ranked."""
    kept = f"kept of {ranked['kept']:,} of {count(ranked['prompts'], 'prompt')}, {ranked['replies']:,} replies in all"
    facts = [("best and worst " if ranked["keep"] == "pairs" else "the best ") + kept]
    for judge, means in ranked["judges"].items():
        worst = "" if means["worst"] is None else f", of the worst {number(means['worst'], 2)}"
        facts.append(f"{judge} of the best {number(means['best'], 2)}{worst}, of all {number(means['all'], 2)}")
    if ranked["longer"] is not None:
        facts.append(
            f"the best is longer than the worst in {percent(ranked['longer'], ranked['longer_ci'])} (mean "
            f"{number(ranked['length_best'], 1)} and {number(ranked['length_worst'], 1)} tokens)"
        )
    facts.append(f"{percent(ranked['cut'])} of replies cut at the limit")
    return facts


def ledger_phrases(rows: Rows) -> list[tuple[str, int]]:
    """Where the rows of a set went: (what, how many). The first is the sum of the others; zeros are left out."""
    reasons = sorted(rows.get("dropped", {}).items(), key=lambda item: -item[1])
    steps = [
        *((f"dropped: {reason}", n) for reason, n in reasons),
        ("to evaluate on", rows.get("evaluated", 0)),
    ]
    return [("read", rows.get("read", 0)), *(step for step in steps if step[1]), ("trained", rows.get("trained", 0))]
