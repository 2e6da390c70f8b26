"""Values of a row in JSON's types, since columns are written to files later."""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from dataclasses import dataclass
from typing import Any

from rlhf.data.images import as_image

_DEPTH = 64
"""How deeply lists and objects may be nested in a column."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Takes the place of a value that JSON cannot hold."""

    kind: str
    """What the value was."""

    def __str__(self) -> str:
        return f"<{self.kind}>"


def plain(value: Any) -> Any:
    """A value in JSON's types.

    Dates, times, durations, decimals and UUIDs become text (ISO 8601 where it applies); NaN, which data frames write
    for a missing value, becomes None, and the bytes of an image a data URI.

    Returns:
        The value; Opaque if it is or contains something without such a form (bytes, an infinite number, an object).
    """
    image = as_image(value)
    return _plain(value, _DEPTH) if image is None else image


def _plain(value: Any, depth: int) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None if math.isnan(value) else Opaque("an infinite number")
        case datetime.date() | datetime.time():  # a datetime is a date
            return value.isoformat()
        case datetime.timedelta() | decimal.Decimal() | uuid.UUID():
            return str(value)
        case dict() | list() | tuple() if not depth:
            return Opaque(f"nested deeper than {_DEPTH} levels")
        case dict():
            parts = {str(key): _plain(part, depth - 1) for key, part in value.items()}
            return next((part for part in parts.values() if isinstance(part, Opaque)), parts)
        case list() | tuple():
            items = [_plain(part, depth - 1) for part in value]
            return next((part for part in items if isinstance(part, Opaque)), items)
        case _:
            return Opaque(type(value).__name__)
