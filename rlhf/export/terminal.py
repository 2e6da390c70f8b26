"""Prints what an export measured."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.export import result as results
from rlhf.export.result import Exported


def show(result: Exported, to: Path) -> None:
    """Print the table of an export, its notes, and where it is."""
    measured = results.table(result)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in measured.header:
        table.add_column(heading, overflow="fold")
    for row in measured.rows:
        table.add_row(*map(Text, row))
    console = Console()
    console.print(table)
    for line in results.notes(result):
        console.print(Text(line))
    console.print(Text(f"exported: {to}"))
