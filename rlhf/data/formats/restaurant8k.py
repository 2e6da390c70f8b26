"""Restaurant-8k: what a caller says about a booking, and where it names people, time, date and names.

Coope, Farghly, Gerz, Vulić & Henderson, "Span-ConveRT" (arXiv 2005.08866). Each row is five questions, one a slot; most
have no answer. `startIndex` is left out where it is 0, `labels` where there is none.
"""

from __future__ import annotations

from typing import Any

from rlhf.data.formats import _columns
from rlhf.data.records import Record, Spanned
from rlhf.errors import UserError

NAME = "restaurant8k"
COLUMNS = ("userInput", "labels", "context")
SLOTS = ("people", "time", "date", "first_name", "last_name")


def matches(row: dict[str, Any]) -> bool:
    """Whether the row has what the user said under `userInput`."""
    said = row.get("userInput")
    return isinstance(said, dict) and _columns.is_text(said.get("text"))


def parse(row: dict[str, Any], origin: str) -> list[Record]:
    """The row as a question a slot, with the extra columns `slot` and `requested_slots`, what the agent had asked for.

    Raises:
        UserError: A slot is unknown, or its span is not in the text.
    """
    said = _columns.value(row, "userInput", origin)
    if not isinstance(said, dict):
        raise _columns.wrong_type(said, "userInput", origin, "an object with text")
    text = _columns.text(said, "text", f"{origin}: userInput")
    spans: dict[str, list[tuple[int, int]]] = {slot: [] for slot in SLOTS}
    for label in _columns.objects(row, "labels", origin) if row.get("labels") else []:
        slot, place = _columns.value(label, "slot", f"{origin}: labels"), label.get("valueSpan")
        if slot not in SLOTS:
            raise UserError(f"{origin}: unknown slot {slot!r} (known: {', '.join(SLOTS)})")
        if not isinstance(place, dict):
            raise _columns.wrong_type(place, "valueSpan", origin, "an object with startIndex and endIndex")
        start, end = place.get("startIndex", 0), place.get("endIndex")
        spans[slot].append(_columns.span(text, start, end, f"{origin}: slot {slot}"))
    asked = row.get("context") or {}
    if not isinstance(asked, dict):
        raise _columns.wrong_type(asked, "context", origin, "an object with requestedSlots")
    extra = {**_columns.rest(row, *COLUMNS), "requested_slots": asked.get("requestedSlots") or []}
    return [
        Spanned(text, slot.replace("_", " "), tuple(found), {**extra, "slot": slot}, origin)
        for slot, found in spans.items()
    ]
