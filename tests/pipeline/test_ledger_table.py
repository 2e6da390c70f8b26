"""What `rlhf check` prints."""

import io

from rich.console import Console

from rlhf.data.findings import Finding, Findings
from rlhf.data.ledger import Ledger
from rlhf.pipeline.ledger_table import findings_lines, ledger_table


def printed(what) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(what)
    return console.file.getvalue()


def test_each_stage_has_its_rows_with_the_first_of_each_reason():
    ledger = Ledger("preferences")
    ledger.read, ledger.trained = 1200, 1199
    ledger.drop("empty side", "a[1].jsonl:7", {})
    lines = printed(ledger_table({"dpo": ledger})).splitlines()
    assert any("dpo" in line and "preferences" in line and "1,200" in line for line in lines)
    assert any("dropped: empty side (first: a[1].jsonl:7)" in line for line in lines)


def test_findings_are_a_block_a_stage_most_severe_first():
    found = Findings("preferences", (
        Finding("contradictory", 2, 10, "rows contradict", (("a[1].jsonl:1", "a[1].jsonl:2"),)),
        Finding("markers", 0, 10, "rows have markers"),
        Finding("length", 9, 10, "pairs are long", said=False),
        Finding("length_tokens", 9, 10, "pairs are long in tokens"),
    ))  # fmt: skip
    lines = printed(findings_lines({"sft": Findings("demonstrations"), "dpo": found})).splitlines()
    assert [line.strip() for line in lines] == [
        "What misleads training or evaluation",
        "dpo preferences",
        "• 2 of 10 (20.0%) rows contradict (first: a[1].jsonl:1 and a[1].jsonl:2)",
        "• 9 of 10 (90.0%) pairs are long in tokens",
    ]


def test_nothing_is_printed_where_nothing_was_found():
    assert printed(findings_lines({"sft": Findings("demonstrations")})).strip() == ""
