"""SQuAD, versions 1 and 2: a question about a text, and the places of its answers, which may be none.

Rajpurkar, Jia & Liang, "Know What You Don't Know" (arXiv 1806.03822). Rows are as on the hub, or articles with their
paragraphs as in the original files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Record, Spanned
from rlhf.errors import UserError

NAME = "squad"
COLUMNS = ("context", "question", "answers")


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has a text, a question and answers with places, or paragraphs with questions."""
    if isinstance(paragraphs := row.get("paragraphs"), list):
        return bool(paragraphs) and isinstance(paragraphs[0], dict) and _columns.has(paragraphs[0], "context", "qas")
    answers = row.get("answers")
    return (
        all(_columns.is_text(row.get(column)) for column in ("context", "question"))
        and isinstance(answers, dict)
        and _columns.has(answers, "text", "answer_start")
    )


def parse(row: dict[str, Any], origin: str) -> Record | list[Record]:
    """The row as a question about a text, or an article as a list of them.

    Raises:
        UserError: An answer is not at its place in the text.
    """
    return _article(row, origin) if "paragraphs" in row else _question(row, origin)


def _article(row: dict[str, Any], origin: str) -> list[Record]:
    records: list[Record] = []
    title = {"title": row["title"]} if "title" in row else {}
    for number, paragraph in enumerate(_columns.objects(row, "paragraphs", origin), 1):
        place = f"{origin}: paragraph {number}"
        context = _columns.text(paragraph, "context", place)
        for question in _columns.objects(paragraph, "qas", place):
            given = _columns.objects(question, "answers", place)
            answers = {
                key: [_columns.value(answer, key, place) for answer in given] for key in ("text", "answer_start")
            }
            record = _question({**title, **question, "context": context, "answers": answers}, place)
            records.append(replace(record, origin=origin))
    return records


def _question(row: dict[str, Any], origin: str) -> Spanned:
    context, question = (_columns.text(row, column, origin) for column in ("context", "question"))
    answers = _columns.value(row, "answers", origin)
    if not isinstance(answers, dict):
        raise _columns.wrong_type(answers, "answers", origin, "an object with text and answer_start")
    texts, starts = (_columns.value(answers, key, f"{origin}: answers") for key in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise UserError(f"{origin}: answers: text and answer_start must be lists of equal length")
    spans = [_span(context, text, start, origin) for text, start in zip(texts, starts, strict=True)]
    return Spanned(context, question, tuple(dict.fromkeys(spans)), _columns.rest(row, *COLUMNS), origin)


def _span(context: str, text: Any, start: Any, origin: str) -> tuple[int, int]:
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise UserError(
            f"{origin}: answers: text holds texts and answer_start whole numbers, not {text!r} and {start!r}"
        )
    span = _columns.span(context, start, start + len(text), origin)
    if context[slice(*span)] != text:
        found = context[slice(*span)]
        raise UserError(f"{origin}: the answer {text[:40]!r} is not at character {start}: there is {found[:40]!r}")
    return span
