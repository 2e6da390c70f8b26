"""GSM8K: a question and a worked answer that ends in "#### number"."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Demonstration

NAME = "gsm8k"
COLUMNS = ("question", "answer")


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has a question and an answer."""
    return all(_columns.is_text(row.get(column)) for column in COLUMNS)


def parse(row: dict[str, Any], origin: str) -> Demonstration:
    """The row as a demonstration of the worked answer, with the final one in the extra column `answer`.

    The final answer is what follows the last "####", without thousands separators, or else the whole answer.
    """
    worked = _columns.text(row, "answer", origin)
    final = worked.rpartition("####")[2].strip()
    prompt, completion = _columns.conversation(_columns.text(row, "question", origin), worked)
    extra = {**_columns.rest(row, *COLUMNS), "answer": final.replace(",", "") if "####" in worked else final}
    return Demonstration(prompt, completion, extra, origin)
