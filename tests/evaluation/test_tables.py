from __future__ import annotations

import io

from rich.console import Console

from rlhf.evaluation import tables
from rlhf.evaluation.report import build_report


def _printed(report, width=130) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(tables.terminal_table(report))
    return out.getvalue()


def test_markdown_cells_cannot_break_the_table():
    table = tables.markdown_table(["a", "b"], [["x|y", "<img src=x>\nz"]], right="b")
    assert table.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | &lt;img src=x> z |"]


def test_comparison_table_md(run_maker):
    report = build_report(run_maker())
    lines = tables.comparison_table_md(report).splitlines()
    assert len(lines) == 2 + 6
    assert lines[0].startswith("| Comparison | Judge |")
    assert lines[2].startswith("| SFT vs Base | gold |")
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert tables.comparison_table_md({**report, "comparisons": []}) == ""


def test_other_markdown_tables(run_maker):
    report = build_report(run_maker())
    assert len(tables.policy_table_md(report).splitlines()) == 2 + 3
    ledger = tables.ledger_table_md(report)
    assert (
        "| SFT | demonstrations | 3,000 | 41 duplicate, 12 prompt held out, 2 empty side | 300 | 2,645 | 4 | 1 |"
        in ledger
    )
    partial = build_report(run_maker(stages=["sft"]))
    assert tables.policy_table_md({**partial, "policies": []}) == ""


def test_terminal_shows_table_verdicts_and_notices(run_maker):
    text = _printed(build_report(run_maker()))
    assert "held-out comparisons" in text
    assert "▲ DPO is better than SFT on gold" in text
    assert "! Base: " in text
    assert _printed(build_report(run_maker()), width=60)  # a narrow terminal is no error


def test_terminal_of_a_run_without_comparisons(tmp_path, run_maker):
    text = _printed(build_report(run_maker(stages=["sft"])))
    assert "SFT: held-out loss 0.742 (before: 2.215)" in text


def test_terminal_does_not_read_names_as_markup(run_maker):
    report = build_report(run_maker())
    report["comparisons"][0]["judge"] = "[bold]x[/nope]"
    assert "[/nope]" in _printed(report, width=200)
