"""BLEU and chrF: how near a completion is to a reference translation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.errors import UserError, not_installed
from rlhf.rewards.text import completion_text, references


def bleu(
    prompts: Sequence[Text], completions: Sequence[Text], column: str = "reference", **columns: Any
) -> list[float | None]:
    """BLEU of each completion against its reference, by `sacrebleu` with its own tokenizer (13a).

    BLEU was made for whole sets. Of a single sentence it uses only the n-gram orders that the sentence is long enough
    for, and halves the count of those without a match again and again (sacrebleu's `exp`).

    Args:
        prompts: Not read.
        completions: B completions, text or messages.
        column: The column that holds the references.
        columns: The data's columns, a value per completion.

    Returns:
        B scores from 0 to 1, hundredths of sacrebleu's; None without a reference.

    Raises:
        UserError: The package is not installed.

    Source: Papineni et al., "BLEU", 2002; Post, "A Call for Clarity in Reporting BLEU Scores", 2018.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise not_installed("sacrebleu", "metrics") from None
    return _scores(BLEU(effective_order=True), completions, references(columns, column, len(completions)))


def chrf(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    column: str = "reference",
    word_order: int = 0,
    **columns: Any,
) -> list[float | None]:
    """Score by chrF of each completion against its reference: F2 of character n-grams up to 6, by `sacrebleu`.

    Args:
        prompts: Not read.
        completions: B completions, text or messages.
        column: The column that holds the references.
        word_order: Longest n-grams of words that count too; 2 is chrF++.
        columns: The data's columns, a value per completion.

    Returns:
        B scores from 0 to 1, hundredths of sacrebleu's; None without a reference.

    Raises:
        UserError: The order is no whole number from 0, or the package is not installed.

    Source: Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015; "chrF++", 2017.
    """
    if not isinstance(word_order, int) or word_order < 0:
        raise UserError(f"word_order must be a whole number from 0, not {word_order!r}")
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise not_installed("sacrebleu", "metrics") from None
    return _scores(CHRF(word_order=word_order), completions, references(columns, column, len(completions)))


def _scores(metric: Any, completions: Sequence[Text], wanted: Sequence[str | None]) -> list[float | None]:
    return [
        None if reference is None else metric.sentence_score(completion_text(completion), [reference]).score / 100
        for completion, reference in zip(completions, wanted, strict=True)
    ]
