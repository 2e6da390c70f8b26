"""Known layouts of a row, one file each: adding a format is adding a file.

A format module has `NAME`; `COLUMNS`, what it needs, for messages; `matches(row)`, whether the first row of a source
looks like it; and `parse(row, origin)`, the row as a record. Where its rows would also match simpler formats, it names
these in `BEFORE`. Modules whose name starts with an underscore are helpers.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from rlhf.data.plain import Opaque
from rlhf.data.records import Record
from rlhf.errors import UserError


@dataclass(frozen=True)
class Format:
    """A layout of rows."""

    name: str
    columns: tuple[str, ...]
    """Columns a row must have."""
    before: tuple[str, ...]
    """Formats that match these rows too, and are asked later."""
    matches: Callable[[dict[str, Any]], bool]
    """Whether a row's columns and their types are of this layout."""
    parse: Callable[[dict[str, Any], str], Record]
    """A row and its origin to a record; Unusable where nothing can be learned from it, UserError where it is wrong."""


@functools.cache
def formats() -> dict[str, Format]:
    """All formats by name, in the order they are asked."""
    found: dict[str, Format] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_"):
            continue
        module: Any = importlib.import_module(f"{__name__}.{info.name}")
        found[module.NAME] = Format(
            module.NAME, module.COLUMNS, getattr(module, "BEFORE", ()), module.matches, module.parse
        )
    earlier = {name: [other.name for other in found.values() if name in other.before] for name in sorted(found)}
    return {name: found[name] for name in TopologicalSorter(earlier).static_order()}


def find(name: str | None, first_row: dict[str, Any], origin: str) -> Format:
    """The format named, or the one the first row looks like.

    Args:
        name: `format:` of the source, or None to look.
        first_row: The source's first row.
        origin: Where that row stands, for messages.

    Raises:
        UserError: No format of this name, or none that the row looks like.
    """
    known = formats()
    if name is not None:
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise UserError(f"{origin}: unknown format {name!r}; {hint}")
    for one in known.values():
        if one.matches(first_row):
            return one
    layouts = "; ".join(f"{one.name} ({', '.join(one.columns)})" for one in known.values())
    names = (f"{column} {value}" if isinstance(value, Opaque) else str(column) for column, value in first_row.items())
    columns = ", ".join(names) or "none"
    advice = "rename them with `columns`, or name a `format`"
    raise UserError(f"{origin}: no known format has these columns: {columns}; {advice}: {layouts}")
