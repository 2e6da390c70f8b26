"""The rounds of a run in its report: read from their folders, in every form, and called by what they are."""

import json

import pytest

from rlhf.report import rounds
from rlhf.report.build import build_report
from rlhf.report.html import render_html, render_markdown
from rlhf.report.names import Names
from rlhf.report.sentences import statements
from tests.support.reports import fake_rounds


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The third of three rounds."""
    return build_report(fake_rounds(tmp_path_factory.mktemp("runs") / "demo", 3))


def test_every_round_so_far_is_in_the_table(made):
    table = rounds.rounds_table(made)
    assert [cells[:4] for cells in table.rows] == [
        ("1", "DPO", "–", "gold"), ("2", "DPO", "150", "gold"), ("3", "DPO", "300", "gold")
    ]  # fmt: skip
    assert [cells[-1] for cells in table.rows] == ["–", "better", "better"]
    assert table.rows[1][4].startswith(f"{made['rounds']['rounds'][1]['scores']['gold']['mean']:.2f}")
    assert "reward" not in made["rounds"]["judges"]  # each round has its own


def test_with_two_rounds_the_first_is_the_one_before(tmp_path):
    second = build_report(fake_rounds(tmp_path / "demo", 2))
    assert "To round 1 [95%]" not in rounds.rounds_table(second).header
    assert next(statement.id for statement in statements(second)) == ("round", "round 1", "gold")


def test_the_base_is_called_by_what_it_is(made):
    names = Names.of(made)
    assert (names.label("base"), names.policy("base")) == ("Round 2's DPO", "round 2's DPO")
    assert Names.of({**made, "rounds": None}).policy("base") == "the base model"


def test_pages_show_them(made):
    page = render_html(made)
    assert 'id="rounds"' in page
    assert [f'aria-label="Round {number}: DPO' in page for number in (1, 2, 3, 4)] == [True, True, True, False]
    assert "## Rounds" in render_markdown(made)
    assert 'id="rounds"' not in render_html({**made, "rounds": None})


def test_a_report_says_why_rounds_are_not_compared(tmp_path):
    run_dir = fake_rounds(tmp_path / "demo", 2)
    samples = run_dir / "evaluate" / "samples.jsonl"
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join([json.dumps({**json.loads(lines[0]), "prompt": "Another?"}), *lines[1:]]) + "\n")
    report = build_report(run_dir)
    assert report["rounds"]["problem"] == "round 2 was compared on other prompts than round 1"
    for text in (render_html(report), render_markdown(report)):
        assert report["rounds"]["problem"] in text
