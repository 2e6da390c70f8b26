"""HH (Anthropic): two transcripts of "Human: …" and "Assistant: …" turns that differ in their last turn.

Each turn follows a blank line. Consecutive turns of a speaker are joined, since chat templates expect speakers to
alternate: a reply that contains a blank line and "Assistant:" would otherwise look like a second reply.
"""

from __future__ import annotations

import re
from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Message, Preference, Unusable

NAME = "hh"
COLUMNS = ("chosen", "rejected")
BEFORE = ("preference",)

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def matches(row: dict[str, Any]) -> bool:
    """Whether at least one side is a transcript: in some rows of HH the other is not."""
    sides = (row.get("chosen"), row.get("rejected"))
    return all(side is None or isinstance(side, str) for side in sides) and any(
        side and re.match(r"\s*Human:", side) and "\n\nAssistant:" in side for side in sides
    )


def parse(row: dict[str, Any], origin: str) -> Preference:
    """The row as a preference between the last turns of two transcripts.

    Raises:
        Unusable: A side is not a transcript, does not end with a reply, or has another prompt.
    """
    sides = [_columns.text(row, column, origin) for column in COLUMNS]
    if not all(side.strip() for side in sides):
        raise Unusable("empty side")
    (prompt, chosen), (rejected_prompt, rejected) = (_split(turns(side)) for side in sides)
    if prompt != rejected_prompt:
        raise Unusable("prompts differ")
    return Preference(prompt, chosen, rejected, _columns.rest(row, *COLUMNS), origin)


def turns(transcript: str) -> list[Message]:
    """A transcript as messages, without the white space around each turn.

    Raises:
        Unusable: It does not begin with a turn.
    """
    before, *parts = _TURN.split(transcript)
    if before.strip() or not parts:
        raise Unusable("not a Human/Assistant transcript")
    messages: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = _ROLES[speaker], content.strip()
        if messages and messages[-1]["role"] == role:
            content = "\n\n".join(part for part in (messages.pop()["content"], content) if part)
        messages.append({"role": role, "content": content})
    return messages


def _split(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    if messages[-1]["role"] != "assistant":
        raise Unusable("ends without a reply")
    return messages[:-1], messages[-1:]
