"""What became of every row, as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from rlhf.data.checks import Ledger


def ledger_table(ledgers: Mapping[str, Ledger]) -> Table:
    """One block a stage: rows read, trained on, held out, and dropped or cut by reason.

    Args:
        ledgers: Stage name: its ledger.
    """
    table = Table(
        "Stage", "Set", "Rows", "", header_style="bold", title="What becomes of every row", title_justify="left"
    )
    table.columns[2].justify = "right"
    table.columns[3].overflow = "fold"
    for stage, ledger in ledgers.items():
        for number, (label, count) in enumerate(ledger.summary()):
            first = ledger.first.get(label.removeprefix("dropped: "))
            head = (stage, ledger.name) if number == 0 else ("", "")
            table.add_row(*head, f"{count:,}", f"{label} (first: {first})" if first else label)
        table.add_section()
    return table
