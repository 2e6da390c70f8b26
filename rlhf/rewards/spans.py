"""F1 and exact match of an answer cut from a text, as SQuAD defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.errors import UserError, not_installed
from rlhf.rewards.text import completion_text


def span_f1(
    prompts: Sequence[Text], completions: Sequence[Text], column: str = "answers", **columns: Any
) -> list[float | None]:
    """F1 of the words of each completion against the answer that it is nearest to, by `torchmetrics`.

    Case, punctuation and articles do not count. Where there is no answer, 1 for an empty completion, else 0.

    Args:
        prompts: Not read.
        completions: B completions, text or messages: the answer's text, empty for no answer.
        column: The column that holds the answers as SQuAD does, `{"text": [...]}`, as a list of texts, or as a text.
        columns: The data's columns, a value per completion.

    Returns:
        B scores from 0 to 1; None where the column is absent or null.

    Raises:
        UserError: The column holds something else, or the package is not installed.

    Source: Rajpurkar et al., "SQuAD", 2016, section 6.1; no answer as in "Know What You Don't Know" (SQuAD 2.0), 2018.
    """
    return _squad("f1", completions, column, columns)


def span_exact_match(
    prompts: Sequence[Text], completions: Sequence[Text], column: str = "answers", **columns: Any
) -> list[float | None]:
    """1 if a completion is one of the answers up to case, punctuation and articles, else 0; otherwise as `span_f1`.

    Args:
        prompts: Not read.
        completions: B completions, text or messages: the answer's text, empty for no answer.
        column: The column that holds the answers, as for `span_f1`.
        columns: The data's columns, a value per completion.

    Returns:
        B scores; None where the column is absent or null.

    Raises:
        UserError: The column holds something else, or the package is not installed.
    """
    return _squad("exact_match", completions, column, columns)


def _squad(kind: str, completions: Sequence[Text], column: str, columns: Mapping[str, Any]) -> list[float | None]:
    try:
        from torchmetrics.functional.text import squad
    except ImportError:
        raise not_installed("torchmetrics", "metrics") from None
    scores: list[float | None] = []
    for completion, value in zip(completions, columns.get(column, [None] * len(completions)), strict=True):
        if value is None:
            scores.append(None)
            continue
        answers: dict[str, list[str] | list[int]] = {"text": _answers(value, column), "answer_start": []}
        prediction = {"prediction_text": completion_text(completion), "id": ""}
        scores.append(float(squad([prediction], [{"answers": answers, "id": ""}])[kind]) / 100)
    return scores


def _answers(value: Any, column: str) -> list[str]:
    """The texts of the answers, as SQuAD 2.0's own script takes them: a blank one, where no other is there.

    Raises:
        UserError: They are no texts.
    """
    texts = value.get("text") if isinstance(value, Mapping) else value
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"column {column!r}: expected {{'text': [...]}} or texts, not {str(value)[:40]!r}")
    return [text for text in texts if text.strip()] or [""]
