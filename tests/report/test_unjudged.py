"""The report of a run whose replies nothing judges."""

from __future__ import annotations

import pytest

from rlhf.report import schema, unjudged
from rlhf.report.build import build_report
from rlhf.report.html import render_html, render_markdown
from rlhf.report.schema import Report
from rlhf.report.sentences import statements
from rlhf.report.terminal import lines
from tests.support.reports import fake_run, fake_unjudged_run


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    return build_report(fake_unjudged_run(tmp_path_factory.mktemp("runs") / "unjudged"))


def test_the_first_thing_said_is_that_there_is_no_verdict(report):
    told = statements(report)
    assert told[0].id == ("unjudged",)
    assert {statement.kind for statement in told} == {"measured"}
    assert [statement.id[1:] for statement in told[1:]] == [
        ("sft", "base", "loss"),
        ("sft", "base", "margin"),
        ("dpo", "sft", "loss"),
        ("dpo", "sft", "margin"),
    ]
    assert lines(report)[0].id == ("unjudged",)


def test_page_and_markdown_show_what_was_measured(report):
    page, text = render_html(report), render_markdown(report)
    assert 'id="measured"' in page
    assert 'id="comparisons"' not in page
    assert 'id="policies"' in page
    assert 'id="replies"' in page
    assert "## Measured without a judge" in text
    assert "## Comparisons" not in text


def test_a_measure_that_is_zero_of_everybody_is_not_shown(report):
    assert "repetition" in {row["measure"] for row in report["measured"]}
    assert "repetition" not in {row["measure"] for row in unjudged.shown_rows(report)}


def test_where_something_judges_nothing_of_this_is_said(tmp_path):
    judged = build_report(fake_run(tmp_path / "judged"))
    assert not schema.unjudged(judged)
    assert judged["measured"] == []
    assert 'id="measured"' not in render_html(judged)
