"""What became of every row, and what was found in those that are used, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlhf.data.findings import Findings
from rlhf.data.ledger import Ledger


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


def findings_lines(findings: Mapping[str, Findings]) -> Group:
    """One block a stage: what misleads training in its set, a line each, most severe first; no block where nothing was.

    Args:
        findings: Stage name: what was found in its set.
    """
    blocks: list[Text | Padding] = []
    for stage, found in findings.items():
        if lines := found.lines():
            blocks.append(Text.assemble((stage, "bold"), f" {found.name}"))
            blocks += [Padding(Text(f"• {line}"), (0, 0, 0, 2)) for line in lines]
    return Group(*([Text("What misleads training or evaluation", "bold italic"), *blocks] if blocks else []))
