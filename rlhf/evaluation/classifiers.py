"""Answers of policies that choose them, classes or spans -> how right and how sure they are, confusions, flips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from rlhf.evaluation.calibration import CalibrationBin, equal_mass_curve, expected_calibration_error
from rlhf.evaluation.classification import (
    ClassMeasures,
    Confusion,
    Names,
    brier_scores,
    class_measures,
    class_names,
    compare_macro_f1,
    confusion_counts,
    confusions,
    correct,
    flips,
    macro_f1,
)
from rlhf.evaluation.compare import Comparison, compare, comparison_pairs
from rlhf.evaluation.samples import Row, SampledCompletion
from rlhf.evaluation.stats import Floats, finite_mean, mean_interval, wilson_interval
from rlhf.rewards.text import SEPARATOR

_COLUMNS = {"label": "label", "span": "answers"}
"""Kind of policy that chooses its answer -> the column that holds what is right: a class or a list of those that are
right together; texts, as SQuAD has them."""
MACRO_F1 = "macro F1"
NEGATIVE_BRIER = "negative Brier score"
MEASURES = (MACRO_F1, NEGATIVE_BRIER)
"""What is compared beside the judges' scores, more being better; each is the `judge` of its comparisons."""
GRID = 20
"""Most classes whose confusions are shown as a grid."""
_SHOWN = 12
"""Rows shown of those that were repaired, and of those that were broken."""


class Grid(TypedDict):
    """How often each class was taken for each."""

    labels: list[str]
    """The classes, in the order of rows and columns of `counts`."""
    counts: list[list[int]]
    """A list for each right class, of the numbers by chosen class."""


class Classifier(TypedDict):
    """How right and how sure one policy is; an entry of `classification.policies` in report.json."""

    policy: str
    """Its name."""
    n: int
    """Rows with a right class and an answer."""
    accuracy: float
    """Share of answers that are right: of several classes at once all of them, of a span one answer to the letter."""
    accuracy_ci: list[float]
    """Its 95% Wilson interval."""
    macro_f1: float | None
    """Null of a policy that marks spans."""
    confidence: float | None
    """Mean probability of the answer; above the accuracy, the policy is too sure."""
    brier: float | None
    """Mean squared distance of that probability from whether the answer is right, less being better."""
    brier_ci: list[float] | None
    """Its 95% interval."""
    ece: float | None
    """Mean distance of accuracy from confidence over `calibration`."""
    calibration: list[CalibrationBin]
    """Bins of about equal numbers of answers; empty where no probability is known."""
    classes: list[ClassMeasures]
    """Empty of spans."""
    grid: Grid | None
    """Null where there are more than `GRID` classes, or several can be right at once."""
    confusions: list[Confusion]
    """The mistakes, most frequent first; empty where several classes can be right at once."""


class Flip(TypedDict):
    """A row on which exactly one of two policies is right."""

    index: int
    """Line of samples.jsonl, from 0."""
    prompt: Any
    """Text, or messages, that the policies answered."""
    right: str
    """The right answer."""
    baseline: str
    """What the baseline answered."""
    policy: str
    """What the policy answered."""


class FlipReport(TypedDict):
    """The rows that a policy repaired and broke beside a baseline; an entry of `classification.flips`."""

    policy: str
    """The policy."""
    baseline: str
    """The policy that it is compared with."""
    n: int
    """Rows with a right class and both answers."""
    repaired: int
    """Wrong before, right now."""
    broken: int
    """Right before, wrong now."""
    p_value: float
    """McNemar's exact test of as many repaired as broken, two-sided, not corrected for other comparisons."""
    repaired_rows: list[Flip]
    """The first of them."""
    broken_rows: list[Flip]
    """The first of the rows that the policy broke."""


class Classification(TypedDict):
    """What follows from the answers of policies that choose them; `classification` in report.json."""

    policies: list[Classifier]
    """Each policy by itself."""
    flips: list[FlipReport]
    """Each policy beside what it is compared with."""


class _Answers(NamedTuple):
    """The rows on which all named policies answered and what is right is known."""

    rows: list[Row]
    right: list[Names]
    """The right classes, or the texts of the answers."""
    chosen: list[list[Names]]
    """By policy."""
    correct: list[Floats]
    """By policy: 1 where it is right, else 0."""
    confidence: list[Floats]
    """By policy; NaN where unknown."""


def classification(rows: Sequence[Row], kinds: Mapping[str, str], parents: Mapping[str, str]) -> Classification | None:
    """How right and how sure each policy is that chooses its answer, and the rows that flipped; None where none does.

    Args:
        rows: Lines of samples.jsonl; of several answers to a prompt the first counts.
        kinds: Policy -> what kind of policy it is; those of kind label and span choose.
        parents: Policy -> the policy it was trained from.
    """
    policies = [policy for policy, kind in kinds.items() if kind in _COLUMNS]
    each = [(policy, _answers(rows, kinds[policy], policy)) for policy in policies]
    known = [(policy, answers) for policy, answers in each if answers.rows]
    if not known:
        return None
    pairs = comparison_pairs([policy for policy, _ in known], parents)
    return Classification(
        policies=[_classifier(policy, answers, kinds[policy]) for policy, answers in known],
        flips=[
            _flips(rows, kinds[policy], policy, baseline)
            for policy, baseline in pairs
            if kinds[policy] == kinds[baseline]
        ],
    )


def compare_classifiers(rows: Sequence[Row], kinds: Mapping[str, str], parents: Mapping[str, str]) -> list[Comparison]:
    """Every policy that chooses its answer against its parent and the base by `MEASURES`, yet to be corrected.

    Macro F1, of classes, is of all rows (`classification.compare_macro_f1`). The Brier score is a mean over rows like
    any judge's, with its sign turned, so that more is better. Neither has a win rate: nothing is won by the surer of
    two right answers.

    Args:
        rows: Lines of samples.jsonl.
        kinds: As for `classification`.
        parents: Policy -> the policy it was trained from.
    """
    comparisons = []
    for policy, baseline in comparison_pairs([name for name, kind in kinds.items() if kind in _COLUMNS], parents):
        answers = _answers(rows, kinds[policy], policy, baseline)
        if not answers.rows or kinds[policy] != kinds[baseline]:
            continue
        if kinds[policy] == "label":
            comparisons.append(_by_macro_f1(len(rows), answers, policy, baseline))
        if all(np.isfinite(confidence_N).any() for confidence_N in answers.confidence):
            brier = compare(list(_scored(answers, policy, baseline)), policy, baseline, NEGATIVE_BRIER)
            brier["win_rate"] = brier["win_rate_ci"] = None
            brier["win_rate_length_controlled"] = brier["win_rate_length_controlled_ci"] = None
            comparisons.append(brier)
    return comparisons


def _answers(rows: Sequence[Row], kind: str, *policies: str) -> _Answers:
    column = _COLUMNS[kind]
    known = [
        row
        for row in rows
        if row["columns"].get(column) is not None and all(row["replies"].get(policy) for policy in policies)
    ]
    values = [row["columns"][column] for row in known]
    several = kind == "label" and any(isinstance(value, list) for value in values)
    right = [_names(_listed(value)) for value in values]
    chosen = [
        [
            _names(text.split(SEPARATOR) if several else [text])
            for text in (row["replies"][policy][0]["text"] for row in known)
        ]
        for policy in policies
    ]
    return _Answers(
        known,
        right,
        chosen,
        [correct(right, said) if kind == "label" else _marked_right(right, said) for said in chosen],
        [np.array([_confidence(row["replies"][policy][0]) for row in known]) for policy in policies],
    )


def _listed(value: Any) -> list[Any]:
    """The classes, or the texts of answers as SQuAD has them; an answer given as a text is one."""
    value = value.get("text", []) if isinstance(value, Mapping) else value
    return value if isinstance(value, list) else [value]


def _names(names: Sequence[Any]) -> Names:
    return frozenset(str(name).strip() for name in names if str(name).strip())


def _marked_right(right: Sequence[Names], said: Sequence[Names]) -> Floats:
    """1 where a span is one of the answers to the letter, or none where there is none, else 0."""
    pairs = zip(right, said, strict=True)
    return np.array([bool(answers & marked) or not answers | marked for answers, marked in pairs], dtype=np.float64)


def _confidence(sample: SampledCompletion) -> float:
    """Probability of an answer; NaN where it is unknown."""
    log_prob = sample.get("log_prob")
    return math.nan if log_prob is None else math.exp(min(0.0, log_prob))


def _classifier(policy: str, answers: _Answers, kind: str) -> Classifier:
    right, (chosen,), (correct_N,), (confidence_N,) = answers.right, answers.chosen, answers.correct, answers.confidence
    of_classes = kind == "label"
    single = of_classes and all(len(names) == 1 for names in right)
    names = class_names([*right, *chosen])
    brier_N = brier_scores(confidence_N, correct_N)
    curve = equal_mass_curve(confidence_N, correct_N)
    f1 = macro_f1(right, chosen) if of_classes else math.nan
    return Classifier(
        policy=policy,
        n=len(right),
        accuracy=float(correct_N.mean()),
        accuracy_ci=list(wilson_interval(float(correct_N.sum()), len(correct_N))),
        macro_f1=None if math.isnan(f1) else f1,
        confidence=finite_mean(confidence_N),
        brier=finite_mean(brier_N),
        brier_ci=mean_interval(brier_N),
        ece=expected_calibration_error(curve),
        calibration=curve,
        classes=class_measures(right, chosen) if of_classes else [],
        grid=Grid(labels=names, counts=confusion_counts(right, chosen, names))
        if single and len(names) <= GRID
        else None,
        confusions=confusions(right, chosen) if single else [],
    )


def _flips(rows: Sequence[Row], kind: str, policy: str, baseline: str) -> FlipReport:
    answers = _answers(rows, kind, policy, baseline)
    ours_N, theirs_N = answers.correct
    found = flips(ours_N, theirs_N)

    def shown(places: Sequence[int]) -> list[Flip]:
        return [_flip(answers.rows[place], _COLUMNS[kind], policy, baseline) for place in places[:_SHOWN]]

    return FlipReport(
        policy=policy,
        baseline=baseline,
        n=len(answers.rows),
        repaired=len(found.repaired),
        broken=len(found.broken),
        p_value=found.p_value,
        repaired_rows=shown(found.repaired),
        broken_rows=shown(found.broken),
    )


def _flip(row: Row, column: str, policy: str, baseline: str) -> Flip:
    between = SEPARATOR if column == _COLUMNS["label"] else " / "
    return Flip(
        index=row["index"],
        prompt=row["prompt"],
        right=between.join(dict.fromkeys(str(name) for name in _listed(row["columns"][column]))),
        baseline=row["replies"][baseline][0]["text"],
        policy=row["replies"][policy][0]["text"],
    )


def _by_macro_f1(rows: int, answers: _Answers, policy: str, baseline: str) -> Comparison:
    ours, theirs = answers.chosen
    found = compare_macro_f1(answers.right, ours, theirs)
    known = not math.isnan(found.difference)
    return Comparison(
        policy=policy,
        baseline=baseline,
        judge=MACRO_F1,
        policy_mean=found.policy if known else None,
        baseline_mean=found.baseline if known else None,
        mean_difference=found.difference if known else None,
        difference_ci=None if math.isnan(found.difference_ci[0]) else list(found.difference_ci),
        win_rate=None,
        win_rate_ci=None,
        win_rate_length_controlled=None,
        win_rate_length_controlled_ci=None,
        p_value=found.p_value if known else None,
        p_adjusted=None,
        n_comparisons=0,
        kl=None,
        mean_length=None,
        baseline_mean_length=None,
        n=len(answers.rows),
        left_out=rows - len(answers.rows),
        verdict="no difference",
        corrected=False,
        doubted=False,
    )


def _scored(answers: _Answers, *policies: str) -> Iterator[Row]:
    """The rows with the negative Brier score as their only score."""
    scores = [
        -brier_scores(confidence_N, correct_N)
        for confidence_N, correct_N in zip(answers.confidence, answers.correct, strict=True)
    ]
    for place, row in enumerate(answers.rows):
        replies = {
            policy: [
                {
                    **row["replies"][policy][0],
                    "scores": {NEGATIVE_BRIER: None if math.isnan(score_N[place]) else float(score_N[place])},
                }
            ]
            for policy, score_N in zip(policies, scores, strict=True)
        }
        yield Row(index=row["index"], prompt="", columns={}, replies=replies)  # type: ignore[typeddict-item]
