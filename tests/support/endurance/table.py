"""The tables of docs/endurance.md, written between markers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.endurance.settings import STAGES

_Cell = Callable[[dict[str, Any]], Any]
_COMMON: dict[str, _Cell] = {
    "Stage": lambda row: row["stage"],
    "Processes": lambda row: row["processes"],
}
_END: dict[str, _Cell] = {
    "Continued from a checkpoint": lambda row: row["resumed"],
    "Runs": lambda row: row["runs"],
    "Identical": lambda row: row["identical"],
    "Seconds": lambda row: f"{row['seconds']:.0f}",
}
_COUNTS = ("Files", "The one before used", "Said in one line", "Nothing deleted")
_CODES: dict[str, _Cell] = {
    "Exit codes": lambda row: ", ".join(f"{_shell(code)} ({count}×)" for code, count in sorted(row["codes"].items()))
}
COLUMNS: dict[str, dict[str, _Cell]] = {
    "kill": {
        **_COMMON, "Kills": lambda row: row["times"], "Inside a save": lambda row: row["in_a_save"], **_END,
    },
    "term": {
        **_COMMON, "SIGTERM": lambda row: row["times"], "Inside a save": lambda row: row["in_a_save"], **_CODES,
        "Slowest end, s": lambda row: f"{row['slowest']:.1f}", **_END,
    },
    "command": {
        "Command": lambda row: f"`{row['stage']}`", "Processes": _COMMON["Processes"],
        "Signals": lambda row: row["times"], **_CODES, "Slowest end, s": lambda row: f"{row['slowest']:.1f}", **_END,
    },
    "damage": {
        "Checkpoint of": _COMMON["Stage"], "Damages": lambda row: row["times"],
        **{name: lambda row, name=name: row["counts"][name] for name in _COUNTS},
        "Continued beside one, identical": lambda row: row["identical"],
    },
    "disk": {"Stage": _COMMON["Stage"], "Full": lambda row: row["times"], **_CODES, **_END},
    "read-only": {"Stage": _COMMON["Stage"], "Refused": lambda row: row["times"], **_CODES, **_END},
}  # fmt: skip
"""Mode -> heading of a column -> its cell."""


def write(page: Path, rows: list[dict[str, Any]]) -> None:
    """Write the tables of these rows into a page, each between the markers of its mode."""
    text = page.read_text(encoding="utf-8")
    for mode, columns in COLUMNS.items():
        mine = sorted(
            (row for row in rows if row["mode"] == mode),
            key=lambda row: (row["processes"], [*STAGES, row["stage"]].index(row["stage"])),
        )
        lines = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in mine)]
        new = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
        before, after = f"<!-- {mode} -->\n", f"<!-- end of {mode} -->"
        start = text.index(before) + len(before)
        text = text[:start] + new + text[text.index(after, start) :]
    page.write_text(text, encoding="utf-8")


def _shell(code: str) -> int:
    """An exit code as a shell has it."""
    return 128 - int(code) if int(code) < 0 else int(code)
