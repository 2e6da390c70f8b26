"""Reading typed columns of a row, with messages that name the place; shared by the formats."""

from __future__ import annotations

import re
from typing import Any

from rlhf.data.plain import Opaque
from rlhf.data.records import Image, Message, Text, Unusable
from rlhf.errors import UserError

_TRUE, _FALSE = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0")


def is_text(value: Any) -> bool:
    """Whether a value is plain text."""
    return isinstance(value, str)


def is_messages(value: Any) -> bool:
    """Whether a value is a list of objects with `role` and `content`. An empty list is not: it could be of anything."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, dict) and "role" in item and "content" in item for item in value)
    )


def has(row: dict[str, Any], *columns: str) -> bool:
    """Whether a row has these columns."""
    return all(column in row for column in columns)


def value(row: dict[str, Any], column: str, origin: str) -> Any:
    """The content of a column that every row must have.

    Raises:
        UserError: The row has no such column.
    """
    if column not in row:
        raise UserError(f"{origin}: column {column!r} is missing (found: {', '.join(map(str, row)) or 'none'})")
    return row[column]


def text(row: dict[str, Any], column: str, origin: str) -> str:
    """A column of plain text; null reads as empty text, which the checks count."""
    content = value(row, column, origin)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise wrong_type(content, column, origin, "text")
    return content


def messages(row: dict[str, Any], column: str, origin: str) -> list[Message]:
    """A column of messages; null reads as no messages.

    Raises:
        Unusable: A message calls a tool; no stage trains on tool calls.
        UserError: It is not a list of messages.
    """
    items = value(row, column, origin)
    if items is None:
        return []
    if not isinstance(items, list):
        raise wrong_type(items, column, origin, "a list of messages")
    return [_message(item, f"{origin}: column {column!r}, message {number}") for number, item in enumerate(items, 1)]


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
    """A column of plain text or of messages."""
    content = value(row, column, origin)
    if isinstance(content, list):
        return messages(row, column, origin)
    if content is not None and not isinstance(content, str):
        raise wrong_type(content, column, origin, "text or a list of messages")
    return content or ""


def same_kind(prompt: Text, row: dict[str, Any], column: str, origin: str) -> Text:
    """A completion of the same kind as its prompt: text after text, messages after messages."""
    if row.get(column, ...) is None:
        return [] if isinstance(prompt, list) else ""
    completion = text_or_messages(row, column, origin)
    if isinstance(completion, list) != isinstance(prompt, list):
        kinds = ("messages", "text") if isinstance(completion, list) else ("text", "messages")
        raise UserError(f"{origin}: column {column!r} holds {kinds[0]}, but the prompt is {kinds[1]}")
    return completion


def single_completion(messages: list[Message]) -> list[Message]:
    """A side of a preference: a single assistant message, or none, which the checks count as an empty side.

    Raises:
        Unusable: It is anything else; whole conversations cannot be compared as completions.
    """
    if len(messages) > 1 or any(message["role"] != "assistant" for message in messages):
        raise Unusable("a side is not one assistant reply")
    return messages


def boolean(row: dict[str, Any], column: str, origin: str) -> bool:
    """A column of true and false, which may also be written as 1 and 0 or as words (in CSV everything is text).

    Raises:
        Unusable: It is null or empty.
        UserError: It is something else.
    """
    flag = value(row, column, origin)
    if flag is None or flag == "":
        raise Unusable("no label")
    if isinstance(flag, bool) or flag in (0, 1):
        return bool(flag)
    word = flag.strip().lower() if isinstance(flag, str) else ""
    if word in (*_TRUE, *_FALSE):
        return word in _TRUE
    raise wrong_type(flag, column, origin, "true or false")


def integer(row: dict[str, Any], column: str, origin: str) -> int:
    """A column of whole numbers, which may also be written as text (in CSV everything is text)."""
    number = value(row, column, origin)
    try:
        if isinstance(number, str | int) or (isinstance(number, float) and number.is_integer()):
            return int(number)
    except ValueError:
        pass
    raise wrong_type(number, column, origin, "a whole number")


def is_label(value: Any) -> bool:
    """Whether a value names a class (text or a whole number), or is a list of such values."""
    return all(map(_is_class, value)) if isinstance(value, list) else _is_class(value)


def _is_class(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())


def labels(row: dict[str, Any], column: str, origin: str) -> tuple[tuple[str, ...], bool]:
    """A column of classes, by name: a name or a number, or a list of these.

    Args:
        row: The row.
        column: The column.
        origin: The row's place, for messages.

    Returns:
        The names of the classes, each once, and whether they were a list; a number's name is the number (`1`, also
        where it is written 1.0, as data frames do).

    Raises:
        Unusable: There is no label.
        UserError: It is something else.
    """
    content = value(row, column, origin)
    several = isinstance(content, list)
    if not several and (content is None or content == ""):
        raise Unusable("no label")
    if not is_label(content):
        raise wrong_type(content, column, origin, "the name or number of a class, or a list of these")
    return tuple(dict.fromkeys(map(_class_name, content if several else [content]))), several


def _class_name(label: str | int | float) -> str:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, str):
        word = label.strip()
        return word.partition(".")[0] if re.fullmatch(r"[0-9]{1,15}\.0*", word) else word
    return str(int(label))


def objects(row: dict[str, Any], column: str, origin: str) -> list[dict[str, Any]]:
    """A column of a list of objects; null reads as an empty list."""
    items = value(row, column, origin)
    if items is not None and not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
        raise wrong_type(items, column, origin, "a list of objects")
    return items or []


def span(text: str, start: Any, end: Any, origin: str) -> tuple[int, int]:
    """The span [start, end) of characters of a text.

    Raises:
        UserError: It is not in the text, or empty.
    """
    numbers = all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end))
    if not numbers or not 0 <= start < end <= len(text):
        raise UserError(f"{origin}: characters {start} to {end} are no span of a text of {len(text)} characters")
    return start, end


def rest(row: dict[str, Any], *used: str) -> dict[str, Any]:
    """The other columns of a row, without those that JSON cannot hold and without images that are data."""
    return {column: cell for column, cell in row.items() if column not in used and not _left_out(cell)}


def _left_out(cell: Any) -> bool:
    return isinstance(cell, Opaque) or (isinstance(cell, Image) and cell.startswith("data:"))


def conversation(prompt: str, completion: str) -> tuple[list[Message], list[Message]]:
    """A prompt and its completion as messages."""
    return [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}]


def wrong_type(content: Any, column: str, origin: str, expected: str) -> UserError:
    """The error for a column of the wrong type."""
    return UserError(f"{origin}: column {column!r} must be {expected}, not {_kind(content)}")


def _kind(cell: Any) -> str:
    if cell is None:
        return "null"
    if isinstance(cell, Opaque):
        return cell.kind
    if isinstance(cell, str):
        return f"text ({cell[:20]!r})"
    if isinstance(cell, bool | int | float):
        return f"{cell}"
    if isinstance(cell, list):
        return "a list"
    return "an object" if isinstance(cell, dict) else type(cell).__name__
