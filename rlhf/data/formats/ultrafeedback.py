"""UltraFeedback (binarized): the prompt as text, and each side as the whole conversation."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.formats.preference import split_messages
from rlhf.data.records import Preference

NAME = "ultrafeedback"
COLUMNS = ("prompt", "chosen", "rejected")
BEFORE = ("preference", "prompt_only")


def matches(row: dict[str, Any]) -> bool:
    """Whether a prompt in plain text stands beside two conversations."""
    sides = [row.get("chosen"), row.get("rejected")]
    return _columns.is_text(row.get("prompt")) and any(map(_columns.is_messages, sides))


def parse(row: dict[str, Any], origin: str) -> Preference:
    """The row as a preference; sides that do not repeat the prompt are completions of it."""
    prompt = _columns.text(row, "prompt", origin)
    chosen, rejected = (_columns.messages(row, side, origin) for side in ("chosen", "rejected"))
    question = [{"role": "user", "content": prompt}]
    if all(side[:1] == [] or side[0]["role"] == "assistant" for side in (chosen, rejected)):
        parts = question, _columns.single_completion(chosen), _columns.single_completion(rejected)
    else:
        parts = split_messages(chosen, rejected)
    return Preference(*parts, _columns.rest(row, *COLUMNS), origin)
