"""TRL's preference: chosen and rejected, plain or as messages, with the prompt beside them or inside both."""

from __future__ import annotations

import re
from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.prefix import common_prefix_length
from rlhf.data.records import Message, Preference, Text, Unusable

NAME = "preference"
COLUMNS = ("chosen", "rejected")
BEFORE = ("prompt_only",)

_REPLY = re.compile(
    r"^[ \t]*(?:#+ *)?(?P<name>AI|A|Answer|Assistant|Bot|Chatbot|GPT|Model|Output|Reply|Response|Summary|TL;DR) *:\n*"
    r"|(?P<token><\|im_start\|>assistant|<\|assistant\|>|<start_of_turn>model|<｜Assistant｜>|\[/INST\]"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>)\n*",
    re.IGNORECASE | re.MULTILINE,
)
"""What marks the start of a reply in plain text: a speaker's name at the start of a line, or a template's token."""


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has a chosen or a rejected side; with one alone, the other is reported as missing."""
    return any(side in row for side in COLUMNS)


def parse(row: dict[str, Any], origin: str) -> Preference:
    """The row as a preference; without a prompt column, the beginning that both sides share is the prompt."""
    extra = _columns.rest(row, "prompt", *COLUMNS)
    if "prompt" not in row:
        return Preference(*_implicit(row, origin), extra, origin)
    prompt = _columns.text_or_messages(row, "prompt", origin)
    chosen, rejected = (_columns.same_kind(prompt, row, side, origin) for side in COLUMNS)
    if isinstance(prompt, list):
        chosen, rejected = (_columns.single_completion(_without(prompt, side)) for side in (chosen, rejected))
    return Preference(prompt, chosen, rejected, extra, origin)


def _implicit(row: dict[str, Any], origin: str) -> tuple[Text, Text, Text]:
    chosen = _columns.text_or_messages(row, "chosen", origin)
    rejected = _columns.same_kind(chosen, row, "rejected", origin)
    if isinstance(chosen, list):
        return split_messages(chosen, rejected)  # type: ignore[arg-type]  # same_kind: both are messages
    return _split_text(chosen, rejected)  # type: ignore[arg-type]  # same_kind: both are text


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two texts into their shared prompt and the completions.

    The prompt ends at the last marker of a reply in their common beginning, of the same kind as the first marker in the
    text. It does not end where the texts start to differ: completions may begin with the same words, and every pair of
    a prompt must yield the same prompt. Texts without a marker are split where they differ, and the space before the
    difference goes to the completions, as in TRL.
    """
    if chosen == rejected:
        raise Unusable("identical")
    start = common_prefix_length(chosen, rejected)
    marks = list(_REPLY.finditer(chosen, 0, start))
    if marks:
        start = next(mark.end() for mark in reversed(marks) if _kind(mark) == _kind(marks[0]))
    elif start and start < min(len(chosen), len(rejected)) and chosen[start - 1] == " ":
        start -= 1
    return chosen[:start], chosen[start:], rejected[start:]


def _kind(mark: re.Match[str]) -> str:
    return (mark["name"] or mark["token"]).lower()


def split_messages(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Split two conversations at the first message that differs: prompt, chosen and rejected completion.

    Raises:
        Unusable: They differ in more than their last message.
    """
    longer = max(chosen, rejected, key=len)
    no_fork = not chosen or not rejected or chosen == rejected
    start = max(len(longer) - 1, 0) if no_fork else common_prefix_length(chosen, rejected)
    return longer[:start], _columns.single_completion(chosen[start:]), _columns.single_completion(rejected[start:])


def _without(prompt: list[Message], side: Text) -> list[Message]:
    """A side without the prompt, if it repeats it."""
    assert isinstance(side, list)  # same_kind: as the prompt
    return side[len(prompt) :] if prompt and side[: len(prompt)] == prompt else side
