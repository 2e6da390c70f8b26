"""What each answer adds to the macro F1 of its batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.rewards.text import label_set, right_labels


def macro_f1(
    prompts: Sequence[Text], completions: Sequence[Text], column: str = "label", **columns: Any
) -> list[float | None]:
    """What each answer adds to the macro F1 of the batch, times the batch's size.

    Macro F1 is the mean over the classes c of the batch's labels of F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c). It belongs
    to a batch and not to a row, so each row gets the difference that its answer makes against no answer:

        r_i = B (F(a_1, ..., a_B) - F(a_1, ..., a_i empty, ..., a_B))

    The second term does not depend on a_i, so the mean over i of r_i times the gradient of log pi(a_i) is, in
    expectation, the gradient of E[F]. A right answer gets (B / C) (F1_c(TP, FP, FN) - F1_c(TP - 1, FP, FN + 1)), which
    is above 0 and larger for rare classes. A wrong one gets (B / C) (F1_a(TP, FP, FN) - F1_a(TP, FP - 1, FN)) of the
    class a that it names, which is at most 0, and 0 where no row of the batch has that class. With several labels a
    row, its names add up.

    A batch is what one call gets: a process's own rows of a rollout, those of a checkpoint's evaluation, or, in the
    comparison, the rows that have no score yet. Classes without a row there do not count, so give a process many rows
    per class. To report macro F1, compute it from all answers: the mean of these rewards is not macro F1.

    Args:
        prompts: Not read.
        completions: B completions, text or messages: names of classes.
        column: The column that holds the right class, or the list of those that are right together.
        columns: The data's columns, a value per completion.

    Returns:
        B scores; None without a label. Rows without a label are not part of the batch.

    Source: the wonderful-life utility of Wolpert and Tumer, "Optimal Payoff Functions for Members of Collectives",
    2001, with no answer in the row's place; macro F1 as the mean of F1 scores, which Opitz and Burst, "Macro F1 and
    Macro F1", 2019, recommend over the F1 of means.
    """
    labels = right_labels(columns, column, len(completions))
    pairs = [
        None if right is None else (label_set(completion), right)
        for completion, right in zip(completions, labels, strict=True)
    ]
    known = [pair for pair in pairs if pair is not None]
    answered = _counts(answer for answer, _ in known)
    wanted = _counts(right for _, right in known)
    hits = _counts(answer & right for answer, right in known)

    def gain(name: str, right: bool) -> float:
        """F1 of a class less what it would be without one of its answers, a right or a wrong one."""
        both = answered[name] + wanted[name]
        return 2 * hits[name] / both - 2 * (hits[name] - right) / (both - 1)

    scale = len(known) / max(1, len(wanted))
    return [
        None if pair is None else scale * sum(gain(name, name in pair[1]) for name in pair[0] if name in wanted)
        for pair in pairs
    ]


def _counts(sets: Iterable[frozenset[str]]) -> Counter[str]:
    return Counter(name for names in sets for name in names)
