"""Which lines the terminal shows below the table; what they say stands in golden/sentences.txt."""

from __future__ import annotations

import pytest

from rlhf.report.build import build_report
from rlhf.report.schema import Report
from rlhf.report.terminal import comparison_rows, lines
from tests.report import cases
from tests.report.write_golden import terminal
from tests.support.reports import fake_full_run


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Report:
    return build_report(fake_full_run(tmp_path_factory.mktemp("runs") / "full", prompts=12, samples=2))


def test_a_policy_has_one_line_and_no_row_is_said_again(full):
    ids = [line.id for line in lines(full)]
    assert ids[:5] == [
        ("shut gate", "ppo"),
        ("tracked", "ppo"),
        ("policy", "sft"),
        ("policy", "dpo"),
        ("policy", "ppo"),
    ]
    assert ("gate", "reward") in ids
    assert [id[1] for id in ids if id[0] == "policy"] == ["sft", "dpo", "ppo"]
    assert not {id[0] for id in ids} & {"comparison", "seeds", "retained"}
    assert "DPO@1" not in terminal(full)
    assert terminal(full).count("\n") < 60


def test_a_recipe_is_judged_by_all_its_seeds(full):
    report: Report = {**full, "seeds": [{**row, "verdict": "worse"} for row in full["seeds"]]}
    shown = {row[0]: row[-1] for row in comparison_rows(report) if row[1] == "gold"}
    assert list(shown) == ["SFT vs Base", "DPO vs SFT, 3 seeds", "DPO vs Base, 3 seeds", "PPO vs SFT", "PPO vs Base"]
    assert (shown["DPO vs SFT, 3 seeds"], shown["SFT vs Base"]) == ("worse", "better")


def test_why_the_table_shows_no_difference_is_said():
    row = cases.comparison(verdict="no difference", corrected=True, n=3)
    assert [line.id for line in lines(cases.report(comparisons=[row]))] == [("corrected",), ("few prompts",)]


def test_a_run_without_comparisons_shows_what_its_stages_measured(run_maker):
    report = build_report(run_maker(stages=["sft", "reward"]))
    assert [line.id for line in lines(report)] == [("reward model", "reward")]
    text = terminal(report)
    assert "0.742" in text
    assert text.count("55%") == 1, "what the line of the reward model says is not said before it"


def test_80_columns_cut_no_name(run_maker):
    report = build_report(run_maker())
    for row in report["comparisons"]:
        row["judge"] = f"the-helpfulness-of-assistants-{row['judge']}"
    assert "…" not in terminal(report, width=80).partition("\n\n")[0]
    assert terminal(report, width=60)  # a narrow terminal is no error


def test_names_are_not_read_as_markup(run_maker):
    report = build_report(run_maker())
    report["comparisons"][0]["judge"] = "[bold]x[/nope]"
    assert "[/nope]" in terminal(report, width=200)
