"""ShareGPT: a conversation of `{"from": "human", "value": …}`."""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Demonstration, Unusable, demonstration_of
from rlhf.errors import UserError

NAME = "sharegpt"
COLUMNS = ("conversations",)

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
          "bing": "assistant", "bard": "assistant", "system": "system"}  # fmt: skip


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has a list of turns with `from` and `value`."""
    turns = row.get("conversations")
    return isinstance(turns, list) and any(isinstance(turn, dict) and {"from", "value"} <= set(turn) for turn in turns)


def parse(row: dict[str, Any], origin: str) -> Demonstration:
    """The conversation as a demonstration of all its replies.

    Raises:
        Unusable: A speaker that is no user, assistant or system (a tool, say).
    """
    turns = _columns.value(row, "conversations", origin)
    if turns is not None and not isinstance(turns, list):
        raise _columns.wrong_type(turns, "conversations", origin, "a list of turns")
    messages = []
    for number, turn in enumerate(turns or [], 1):
        place = f"{origin}: column 'conversations', turn {number}"
        if not isinstance(turn, dict):
            raise UserError(f"{place}: expected an object with from and value")
        speaker = _columns.text(turn, "from", place)
        if speaker not in _ROLES:
            raise Unusable(f"unknown speaker {speaker!r}")
        messages.append({"role": _ROLES[speaker], "content": _columns.text(turn, "value", place)})
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return demonstration_of(messages, _columns.rest(row, *COLUMNS), origin)
