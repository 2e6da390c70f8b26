"""ROUGE: how much a completion overlaps with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.errors import UserError, not_installed, unknown_name
from rlhf.rewards.text import completion_text, references

_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    column: str = "reference",
    kind: str = "rougeL",
    **columns: Any,
) -> list[float | None]:
    """ROUGE F1 of each completion against its reference (Lin, "ROUGE", 2004), by `rouge-score`, without stemming.

    Args:
        prompts: Not read.
        completions: B completions, text or messages.
        column: The column that holds the references.
        kind: `rouge1` or `rouge2` (words, pairs of words), `rougeL` (longest common subsequence) or `rougeLsum` (the
            same by lines).
        columns: The data's columns, a value per completion.

    Returns:
        B scores from 0 to 1; None without a reference.

    Raises:
        UserError: The kind is unknown or the package is not installed.
    """
    if kind not in _KINDS:
        raise UserError(f"unknown kind {kind!r}; {unknown_name(str(kind), _KINDS)}")
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise not_installed("rouge-score", "rouge") from None
    scorer = RougeScorer([kind])
    return [
        None if reference is None else float(scorer.score(reference, completion_text(completion))[kind].fmeasure)
        for completion, reference in zip(completions, references(columns, column, len(completions)), strict=True)
    ]
