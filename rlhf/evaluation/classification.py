"""How right and how sure a classifier is, alone and beside another on the same rows. Pure functions on class names.

What a row is and what a classifier says of it are sets of class names: of one name, or of several where several can be
true at once. Axes: N rows, C classes, R resamples.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from rlhf.evaluation.stats import Floats, Interval, expanded_level

Names = frozenset[str]
"""The classes of a row."""

_RESAMPLES = 10_000
_BATCH_VALUES = 4_000_000  # resampled rows held at once: 32 MB
_ROUNDING = 1e-12


class ClassMeasures(TypedDict):
    """How well one class is told from the others."""

    label: str
    """The class."""
    precision: float | None
    """Share of the rows said to be of the class that are; null where none is said to be."""
    recall: float | None
    """Share of the rows of the class that are said to be; null where there is none."""
    f1: float | None
    """Harmonic mean of both, 2 hits / (of the class + said to be); null where no row is either."""
    rows: int
    """Rows of the class."""
    chosen: int
    """Rows said to be of the class."""


class Confusion(TypedDict):
    """How often one class was taken for another."""

    right: str
    """The class of the rows."""
    chosen: str
    """The class that they were said to be of."""
    n: int
    """Rows."""


class MacroF1(NamedTuple):
    """Macro F1 of two classifiers on the same rows, and their difference."""

    policy: float
    baseline: float
    difference_ci: Interval
    """95%."""
    p_value: float

    @property
    def difference(self) -> float:
        """Policy less baseline."""
        return self.policy - self.baseline


class Flips(NamedTuple):
    """The rows on which exactly one of two policies is right, by their number."""

    repaired: list[int]
    """The baseline is wrong, the policy right."""
    broken: list[int]
    """The baseline is right, the policy wrong."""

    @property
    def p_value(self) -> float:
        """Two-sided, of as many repaired as broken: McNemar's test in its exact form (McNemar 1947), a sign test."""
        n = len(self.repaired) + len(self.broken)
        return float(scipy_stats.binomtest(len(self.repaired), n).pvalue) if n else 1.0


def class_names(right: Sequence[Names]) -> list[str]:
    """The classes of some rows in the order people write them: numbers by size, names by the alphabet."""

    def place(name: str) -> list[tuple[bool, int, str]]:
        return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]

    return sorted({name for names in right for name in names}, key=place)


def correct(right: Sequence[Names], chosen: Sequence[Names]) -> Floats:
    """1 where a row's classes are exactly those that were said, else 0."""
    return np.array([are == said for are, said in zip(right, chosen, strict=True)], dtype=np.float64)


def brier_scores(confidence_N: Floats, correct_N: Floats) -> Floats:
    """Squared distance of the confidence in the own answer from whether it is right: (p - 1)² or p².

    The Brier score (Brier 1950) of the event "this answer is right", a proper score: its mean is least for the
    classifier's true chances. Less is better. It falls with accuracy too, and not with calibration alone.

    Args:
        confidence_N: Probability that the classifier gave to its answer; NaN where unknown.
        correct_N: 1 where the answer is right, else 0.

    Returns:
        One score a row; NaN where the confidence is.
    """
    return (confidence_N - correct_N) ** 2


def class_measures(right: Sequence[Names], chosen: Sequence[Names]) -> list[ClassMeasures]:
    """Precision, recall and F1 of each class that some row has or is said to have.

    Args:
        right: The classes of each row.
        chosen: The classes that each was said to have.
    """
    names = class_names([*right, *chosen])
    right_NC, chosen_NC = _members(right, names), _members(chosen, names)
    counts = zip(names, *_counts(right_NC, chosen_NC).astype(int).tolist(), strict=True)
    return [
        ClassMeasures(
            label=name,
            precision=hits / said if said else None,
            recall=hits / of_it if of_it else None,
            f1=2 * hits / (of_it + said) if of_it + said else None,
            rows=of_it,
            chosen=said,
        )
        for name, hits, of_it, said in counts
    ]


def confusion_counts(right: Sequence[Names], chosen: Sequence[Names], names: Sequence[str]) -> list[list[int]]:
    """How many rows of each class were said to be of each, where every row has one class.

    Args:
        right: The class of each row.
        chosen: The class each was said to be of.
        names: The classes, in the order of rows and columns; a row with another is not counted.

    Returns:
        A list for each right class, of the numbers by chosen class.
    """
    counts = Counter(zip(right, chosen, strict=True))
    return [[counts[frozenset([are]), frozenset([said])] for said in names] for are in names]


def confusions(right: Sequence[Names], chosen: Sequence[Names]) -> list[Confusion]:
    """The mistakes, most frequent first, where every row has one class.

    Args:
        right: The class of each row.
        chosen: The class each was said to be of; an empty set is written as an empty text.
    """
    mistakes = Counter(
        (", ".join(sorted(are)), ", ".join(sorted(said)))
        for are, said in zip(right, chosen, strict=True)
        if are != said
    )
    ordered = sorted(mistakes.items(), key=lambda item: (-item[1], item[0]))
    return [Confusion(right=are, chosen=said, n=n) for (are, said), n in ordered]


def flips(policy_N: Floats, baseline_N: Floats) -> Flips:
    """The rows on which exactly one of two policies is right.

    Args:
        policy_N: 1 where the policy is right, else 0.
        baseline_N: The same of the baseline.
    """
    difference_N = policy_N - baseline_N
    return Flips(np.flatnonzero(difference_N > 0).tolist(), np.flatnonzero(difference_N < 0).tolist())


def macro_f1(right: Sequence[Names], chosen: Sequence[Names]) -> float:
    """Mean over the classes that some row has of their F1, 2 hits / (of the class + said to be).

    A class that no row has is left out whether or not it was said: a wrong answer already costs the row's own class its
    recall. So two classifiers are averaged over the same classes, on all rows and in every resample; scikit-learn's
    macro average has the classes that only the classifier named, too, with an F1 of 0. It is the mean of the F1 and not
    the F1 of the means (Opitz & Burst 2019, "Macro F1 and Macro F1").

    Args:
        right: The classes of each row.
        chosen: The classes that each was said to have.

    Returns:
        Between 0 and 1; NaN where no row has a class.
    """
    names = class_names(right)
    return float(_macro_f1(*_counts(_members(right, names), _members(chosen, names))))


def compare_macro_f1(
    right: Sequence[Names],
    policy: Sequence[Names],
    baseline: Sequence[Names],
    level: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> MacroF1:
    """Macro F1 of two classifiers on the same rows, with the interval and the p-value of their difference.

    Macro F1 is of a set and no mean over rows. So rows are drawn again, the same for both, and the difference is taken
    of each draw: the interval is the middle of these at the level of `stats.bootstrap_ci`. The p-value is that of a
    permutation test: were there no difference, the answers of a row could as well be the other's (Yeh 2000, "More
    Accurate Tests for the Statistical Significance of Result Differences"), (1 + hits) / (1 + R) of R random exchanges.

    Args:
        right: The classes of each of N rows.
        policy: What the policy said.
        baseline: What the baseline said.
        level: Confidence, between 0 and 1.
        resamples: Number of draws, and of exchanges.
        seed: Of both.

    Returns:
        Both values and their difference; the interval is (nan, nan) for fewer than two rows.
    """
    names, count = class_names(right), len(right)
    right_NC = _members(right, names)
    said = _members(policy, names), _members(baseline, names)
    columns_NK = np.concatenate(
        [right_NC, *(part for said_NC in said for part in (right_NC * said_NC, said_NC))], axis=1
    )

    def values(sums_RK: Floats) -> tuple[Floats, Floats]:
        of_it, a_hits, a_said, b_hits, b_said = np.split(sums_RK, 5, axis=-1)
        return _macro_f1(a_hits, of_it, a_said), _macro_f1(b_hits, of_it, b_said)

    ours, theirs = (float(value) for value in values(columns_NK.sum(axis=0)))
    if count < 2:
        return MacroF1(ours, theirs, (math.nan, math.nan), 1.0)
    rng = np.random.default_rng(seed)
    drawn = _in_batches(resamples, count, lambda size: rng.multinomial(count, np.full(count, 1 / count), size))
    differences_R = np.concatenate([np.subtract(*values(weights_RN @ columns_NK)) for weights_RN in drawn])
    tail = (1 - expanded_level(level, count)) / 2
    low, high = np.quantile(differences_R, [tail, 1 - tail])
    differ_N = np.any(said[0] != said[1], axis=1)
    turned_NK = _exchanged(columns_NK[differ_N])
    total_K, bound = columns_NK.sum(axis=0), abs(ours - theirs) - _ROUNDING
    exchanged = _in_batches(resamples, len(turned_NK), lambda size: rng.integers(0, 2, (size, len(turned_NK))))
    hits = sum(
        int((np.abs(np.subtract(*values(total_K + swaps_RN @ turned_NK))) >= bound).sum()) for swaps_RN in exchanged
    )
    return MacroF1(ours, theirs, (float(low), float(high)), (1 + hits) / (1 + resamples))


def _exchanged(columns_NK: Floats) -> Floats:
    """What the sums gain where the answers of a row are exchanged."""
    of_it, a_hits, a_said, b_hits, b_said = np.split(columns_NK, 5, axis=1)
    gained = np.zeros_like(of_it), b_hits - a_hits, b_said - a_said, a_hits - b_hits, a_said - b_said
    return np.concatenate(gained, axis=1)


def _in_batches(resamples: int, rows: int, draw: Callable[[int], NDArray[np.integer]]) -> Iterator[Floats]:
    """Random weights of the rows, so many resamples at once as memory is to hold."""
    batch = max(1, _BATCH_VALUES // max(1, rows))
    for start in range(0, resamples, batch):
        yield draw(min(batch, resamples - start)).astype(np.float64)


def _members(rows: Sequence[Names], names: Sequence[str]) -> Floats:
    """1 where a row has a class, else 0; classes that are not among the names are left out."""
    place = {name: number for number, name in enumerate(names)}
    members_NC = np.zeros((len(rows), len(names)))
    for number, of_row in enumerate(rows):
        for name in of_row & place.keys():
            members_NC[number, place[name]] = 1
    return members_NC


def _counts(right_NC: Floats, chosen_NC: Floats) -> Floats:
    """Of each class the rows that are of it and are said to be, that are of it, and that are said to be."""
    return np.stack([(right_NC * chosen_NC).sum(axis=0), right_NC.sum(axis=0), chosen_NC.sum(axis=0)])


def _macro_f1(hits_C: Floats, of_it_C: Floats, said_C: Floats) -> Floats:
    """`macro_f1` from the counts of each class; the last axis is that of the classes."""
    f1_C = np.divide(2 * hits_C, of_it_C + said_C, out=np.zeros_like(hits_C), where=of_it_C > 0)
    known = (of_it_C > 0).sum(axis=-1)
    return np.divide(f1_C.sum(axis=-1), known, out=np.full(known.shape, np.nan), where=known > 0)
