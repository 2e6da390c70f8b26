"""Reading typed columns of a row, with messages that name the place; shared by the formats."""

from __future__ import annotations

import re
from typing import Any

from rlhf.data.plain import Opaque
from rlhf.data.records import Message, Text, Unusable
from rlhf.errors import UserError

_TRUE, _FALSE = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0")
_CLASSES = {"neg": 0, "negative": 0, "pos": 1, "positive": 1}
"""Names of classes whose order is plain."""


def is_text(value: Any) -> bool:
    """Plain text."""
    return isinstance(value, str)


def is_messages(value: Any) -> bool:
    """A list of objects with `role` and `content`; an empty list is none, as nothing tells what it is a list of."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, dict) and "role" in item and "content" in item for item in value)
    )


def has(row: dict[str, Any], *columns: str) -> bool:
    """Whether a row has these columns."""
    return all(column in row for column in columns)


def value(row: dict[str, Any], column: str, origin: str) -> Any:
    """A column that must be there."""
    if column not in row:
        raise UserError(f"{origin}: column {column!r} is missing (found: {', '.join(map(str, row)) or 'none'})")
    return row[column]


def text(row: dict[str, Any], column: str, origin: str) -> str:
    """A column of plain text; null is empty text, which the checks count."""
    found = value(row, column, origin)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise wrong_type(found, column, origin, "text")
    return found


def messages(row: dict[str, Any], column: str, origin: str) -> list[Message]:
    """A column of messages; null is no message.

    Raises:
        Unusable: A message that calls a tool: no stage here trains on these.
        UserError: It is no list of messages.
    """
    found = value(row, column, origin)
    if found is None:
        return []
    if not isinstance(found, list):
        raise wrong_type(found, column, origin, "a list of messages")
    return [_message(item, f"{origin}: column {column!r}, message {number}") for number, item in enumerate(found, 1)]


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise UserError(f"{place}: expected an object with role and content, not {_kind(item)}")
    for key in ("role", "content"):
        if key not in item:
            raise UserError(f"{place}: {key!r} is missing (found: {', '.join(map(str, item)) or 'none'})")
    if item.get("tool_calls"):
        raise Unusable("calls a tool")
    role, content = item["role"], "" if item["content"] is None else item["content"]
    for key, part in (("role", role), ("content", content)):
        if not isinstance(part, str):
            raise UserError(f"{place}: {key!r} must be text, not {_kind(part)}")
    return {"role": role, "content": content}


def text_or_messages(row: dict[str, Any], column: str, origin: str) -> Text:
    """A column that may be either."""
    found = value(row, column, origin)
    if isinstance(found, list):
        return messages(row, column, origin)
    if found is not None and not isinstance(found, str):
        raise wrong_type(found, column, origin, "text or a list of messages")
    return found or ""


def same_kind(prompt: Text, row: dict[str, Any], column: str, origin: str) -> Text:
    """A completion, which must be text where the prompt is text and messages where it is messages."""
    if row.get(column, ...) is None:
        return [] if isinstance(prompt, list) else ""
    found = text_or_messages(row, column, origin)
    if isinstance(found, list) != isinstance(prompt, list):
        kinds = ("messages", "text") if isinstance(found, list) else ("text", "messages")
        raise UserError(f"{origin}: column {column!r} holds {kinds[0]}, but the prompt is {kinds[1]}")
    return found


def one_reply(found: list[Message]) -> list[Message]:
    """A side of a preference: one assistant message, or none, which the checks count as empty.

    Raises:
        Unusable: It is anything else; two conversations are no pair of replies.
    """
    if len(found) > 1 or any(message["role"] != "assistant" for message in found):
        raise Unusable("a side is not one assistant reply")
    return found


def boolean(row: dict[str, Any], column: str, origin: str) -> bool:
    """A column of true or false, also written 1 and 0, or as a word (CSV has nothing else)."""
    found = value(row, column, origin)
    if isinstance(found, bool) or found in (0, 1):
        return bool(found)
    word = found.strip().lower() if isinstance(found, str) else ""
    if word in (*_TRUE, *_FALSE):
        return word in _TRUE
    raise wrong_type(found, column, origin, "true or false")


def integer(row: dict[str, Any], column: str, origin: str) -> int:
    """A column of whole numbers, also written as text (CSV has nothing else)."""
    found = value(row, column, origin)
    try:
        if isinstance(found, str | int) or (isinstance(found, float) and found.is_integer()):
            return int(found)
    except ValueError:
        pass
    raise wrong_type(found, column, origin, "a whole number")


def class_number(found: Any) -> int | None:
    """The number of a class, from 0 on, also written as text (`1`, `1.0`) or by name (`neg`, `pos`); else None."""
    if isinstance(found, str):
        word = found.strip().lower()
        if word in _CLASSES:
            return _CLASSES[word]
        found = float(word) if re.fullmatch(r"[0-9]{1,15}(\.0*)?", word) else None
    whole = isinstance(found, int) or (isinstance(found, float) and found.is_integer())
    return int(found) if whole and found >= 0 else None


def rest(row: dict[str, Any], *used: str) -> dict[str, Any]:
    """The other columns of a row, less those that JSON cannot hold."""
    return {column: found for column, found in row.items() if column not in used and not isinstance(found, Opaque)}


def conversation(question: str, reply: str) -> tuple[list[Message], list[Message]]:
    """A question and its reply as messages."""
    return [{"role": "user", "content": question}], [{"role": "assistant", "content": reply}]


def wrong_type(found: Any, column: str, origin: str, expected: str) -> UserError:
    """The error for a column of the wrong type."""
    return UserError(f"{origin}: column {column!r} must be {expected}, not {_kind(found)}")


def _kind(found: Any) -> str:
    if found is None:
        return "null"
    if isinstance(found, Opaque):
        return found.kind
    if isinstance(found, str):
        return f"text ({found[:20]!r})"
    if isinstance(found, bool | int | float):
        return f"{found}"
    return "a list" if isinstance(found, list) else "an object" if isinstance(found, dict) else type(found).__name__
