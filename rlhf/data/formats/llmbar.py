"""LLMBar: an instruction, two outputs, and the number of the better one."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Preference, Unusable

NAME = "llmbar"
COLUMNS = ("input", "output_1", "output_2", "label")


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has two numbered outputs and a label."""
    return _columns.has(row, *COLUMNS)


def parse(row: dict[str, Any], origin: str) -> Preference:
    """The row as a preference for the output that the label names.

    Raises:
        Unusable: It is a tie.
    """
    winner = _columns.value(row, "label", origin)
    if winner in (0, None) or (isinstance(winner, str) and winner.strip().lower() in ("", "0", "tie")):
        raise Unusable("tie")
    label = _columns.integer(row, "label", origin)
    if label not in (1, 2):
        raise _columns.wrong_type(label, "label", origin, "1 or 2")
    question = _columns.text(row, "input", origin)
    outputs = [_columns.text(row, column, origin) for column in ("output_1", "output_2")]
    prompt, chosen = _columns.conversation(question, outputs[label - 1])
    _, rejected = _columns.conversation(question, outputs[2 - label])
    return Preference(prompt, chosen, rejected, _columns.rest(row, *COLUMNS), origin)
