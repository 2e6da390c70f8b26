from __future__ import annotations

import io

from rich.console import Console

from rlhf.report import tables
from rlhf.report.build import build_report
from tests.support.reports import gate_metrics, make_full_run, tracked_points


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


def test_p_values_never_read_as_nothing():
    assert [tables.probability(p) for p in (None, 0.0, 0.004, 0.0494, 1.0)] == ["–", "<0.001", "0.004", "0.049", "1.00"]


def test_some_columns_of_the_comparisons(run_maker):
    report = build_report(run_maker())
    whole, some = tables.comparison_table(report), tables.comparison_table(report, ("Verdict", "Judge"))
    assert some.rows == [(cells[-1], cells[1]) for cells in whole.rows]
    assert all(len(cells) == len(tables.COMPARISON_HEADER) for cells in whole.rows)
    assert set(tables.ON_PAGE) == {*tables.COMPARISON_HEADER} - {"KL", "Tokens"}


def test_tables_of_a_gate_and_of_checkpoints():
    gate = {"stages": {"gate": gate_metrics(accuracy_shift=2.0)}}
    ((name, *_, verdict),) = tables.gate_table(gate).rows
    assert (name, verdict) == ("reward", "passed")
    moved = tables.invariance_table({"invariance": {"batch": 0.2, "eos": None}}).rows
    assert [(row[1], row[2]) for row in moved] == [("0.200", "0.050")]
    rows = tables.tracked_table({"tracked": tracked_points(), "selected_step": 60}).rows
    assert [row[-1] for row in rows] == ["start", "", "", "kept", "", ""]
    assert rows[2][:3] == ("40", "3.00", "1.73")
    assert tables.tracked_table({}).markdown() == ""


def test_findings_of_one_set_are_said_once():
    found = {"set": "preferences", "lines": ["12 of 3,000 | contradict"]}
    stages = {"reward": {"findings": found}, "dpo": {"findings": found}, "sft": {}}
    assert tables.finding_lines({"stages": stages}) == ["preferences: 12 of 3,000 \\| contradict (Reward model, DPO)"]


def test_terminal_of_a_full_run_is_short(tmp_path):
    text = _printed(build_report(make_full_run(tmp_path / "full", prompts=12, samples=2)))
    assert "DPO@1" not in text
    for said in (
        "! PPO maximised a reward model",
        "Over 3 seeds DPO",
        "▼ SFT lost on general",
        "! The reward model did not pass",
    ):
        assert said in text
    assert text.count("\n") < 80


def test_terminal_judges_a_recipe_by_all_its_seeds(tmp_path):
    report = build_report(make_full_run(tmp_path / "full", prompts=12, samples=2))
    report["seeds"] = [{**row, "verdict": "worse"} for row in report["seeds"]]
    shown = {row[0]: row for row in tables._narrow_rows(report) if row[1] == "gold"}
    assert list(shown) == ["SFT vs Base", "DPO vs SFT, 3 seeds", "DPO vs Base, 3 seeds", "PPO vs SFT", "PPO vs Base"]
    assert (shown["DPO vs SFT, 3 seeds"][-1], shown["SFT vs Base"][-1]) == ("worse", "better")


def test_terminal_of_80_columns_cuts_no_name(run_maker):
    report = build_report(run_maker())
    for row in report["comparisons"]:
        row["judge"] = f"the-helpfulness-of-assistants-{row['judge']}"
    table = _printed(report, width=80).partition("\n\n")[0]
    assert "…" not in table


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
