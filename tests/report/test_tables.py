from __future__ import annotations

from rlhf.report import tables
from rlhf.report.build import build_report
from tests.report import cases
from tests.support.reports import gate_metrics, tracked_points


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


def test_p_values_never_read_as_nothing():
    assert [tables.probability(p) for p in (None, 0.0, 0.004, 0.0494, 1.0)] == ["–", "<0.001", "0.004", "0.049", "1.00"]


def test_some_columns_of_the_comparisons(run_maker):
    report = build_report(run_maker())
    whole, some = tables.comparison_table(report), tables.comparison_table(report, ("Verdict", "Judge"))
    assert some.rows == [(cells[-1], cells[1]) for cells in whole.rows]
    assert all(len(cells) == len(tables.COMPARISON_HEADER) for cells in whole.rows)
    assert "Difference [95%]" not in tables.page_table(report).header
    assert "Difference [95%]" in tables.page_table({**report, "seeds": [cases.SEEDS]}).header, "of every seed"


def test_tables_of_a_gate_and_of_checkpoints():
    gate = cases.report(stages={"gate": gate_metrics(accuracy_shift=2.0)})
    ((name, *_, verdict),) = tables.gate_table(gate).rows
    assert (name, verdict) == ("reward", "passed")
    moved = tables.invariance_table({"invariance": {"batch": 0.2, "eos": None}}).rows
    assert [(row[1], row[2]) for row in moved] == [("0.200", "0.050")]
    rows = tables.tracked_table({"tracked": tracked_points(), "selected_step": 60}).rows
    assert [row[-1] for row in rows] == ["start", "", "", "kept", "", ""]
    assert rows[2][:3] == ("40", "3.00", "1.73")
    assert tables.tracked_table({}).markdown() == ""


def test_findings_of_one_set_are_said_once():
    findings = {"set": "preferences", "lines": ["12 of 3,000 | contradict"]}
    stages = {"reward": {"findings": findings}, "dpo": {"findings": findings}, "sft": {}}
    lines = tables.finding_lines(cases.report(stages=stages))
    assert lines == ["preferences: 12 of 3,000 \\| contradict (Reward model, DPO)"]


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
