"""The known layouts of a row, one file each: adding a format means adding a file.

A format module defines `NAME`; `COLUMNS`, the columns it needs, for messages; `matches(row)`, whether the first row of
a source has this layout; and `parse(row, origin)`, which turns a row into a record, or into a list of them. If its rows
would also match simpler formats, it names these in `BEFORE`. Modules whose names start with an underscore are helpers.
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
    """Formats that match these rows too and are tried later."""
    matches: Callable[[dict[str, Any]], bool]
    """Whether a row's columns and their types fit this layout."""
    parse: Callable[[dict[str, Any], str], Record | list[Record]]
    """Turns a row and its origin into a record, or into several; raises Unusable if nothing can be learned from it,
    UserError if it is malformed."""

    def records(self, row: dict[str, Any], origin: str) -> list[Record]:
        """The records of a row; raises what `parse` does."""
        parsed = self.parse(row, origin)
        return parsed if isinstance(parsed, list) else [parsed]


@functools.cache
def formats() -> dict[str, Format]:
    """All formats by name, in the order in which they are tried."""
    known: dict[str, Format] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_"):
            continue
        module: Any = importlib.import_module(f"{__name__}.{info.name}")
        known[module.NAME] = Format(
            module.NAME, module.COLUMNS, getattr(module, "BEFORE", ()), module.matches, module.parse
        )
    earlier = {name: [layout.name for layout in known.values() if name in layout.before] for name in sorted(known)}
    return {name: known[name] for name in TopologicalSorter(earlier).static_order()}


def find(name: str | None, first_row: dict[str, Any], origin: str) -> Format:
    """The format of this name, or the one that the first row matches.

    Args:
        name: `format:` of the source; None to look at the first row.
        first_row: The source's first row.
        origin: Where that row stands, for messages.

    Raises:
        UserError: There is no format of this name, or the row matches none.
    """
    known = formats()
    if name is not None:
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise UserError(f"{origin}: unknown format {name!r}; {hint}")
    for layout in known.values():
        if layout.matches(first_row):
            return layout
    layouts = "; ".join(f"{layout.name} ({', '.join(layout.columns)})" for layout in known.values())
    names = (f"{column} {value}" if isinstance(value, Opaque) else str(column) for column, value in first_row.items())
    columns = ", ".join(names) or "none"
    advice = "rename them with `columns`, or name a `format`"
    raise UserError(f"{origin}: no known format has these columns: {columns}; {advice}: {layouts}")
