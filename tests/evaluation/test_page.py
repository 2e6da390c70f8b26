from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from rlhf.evaluation.page import render_html, standfirst
from rlhf.evaluation.report import build_report, write_report
from tests.evaluation.fabricated import sample_rows

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "</div><script>alert(1)</script><img src=x onerror=alert(2)> \u202e &amp; {{ 7 * 7 }} \x00 \ud800"


class Page(HTMLParser):
    """Collects tags, attributes and text, and holds that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(html)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def html(run_maker) -> str:
    return write_report(run_maker()).read_text(encoding="utf-8")


def test_page_is_well_formed_and_has_its_parts(html):
    page = Page(html)
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section" and "id" in attributes]
    assert ids == ["verdicts", "comparisons", "policies", "stages", "replies", "provenance"]
    assert page.text.index("DPO is better than SFT on gold.") < page.text.index("Judged by")
    assert "The reward model is better than choosing by length alone." in page.text
    assert sum(tag == "polyline" for tag, _ in page.tags) > 10
    assert sum(tag == "article" for tag, _ in page.tags) == 60
    for name in ("nan", "undefined", "None"):
        assert not re.search(rf'="[^"]*\b{name}\b[^"]*"', html)


def test_page_loads_nothing_and_runs_nothing(html):
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "srcset", "action"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_what_a_model_wrote_stays_text(run_maker):
    rows = sample_rows(prompts=14, samples=2)
    for row in rows:
        row["prompt"] = [{"role": "<b>user", "content": HOSTILE}] if row["index"] % 2 else HOSTILE
        for samples in row["replies"].values():
            for sample in samples:
                sample["text"] = HOSTILE
    html = write_report(run_maker(rows=rows)).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "onerror" not in {name for _, attributes in Page(html).tags for name in attributes}
    assert "<img" not in html
    assert "{{ 7 * 7 }}" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_names_of_judges_stages_and_rows_stay_text(run_maker):
    report = build_report(run_maker())
    evil = "<u>x</u>"
    report["name"] = evil
    report["comparisons"][0]["judge"] = evil
    report["evaluation"]["judges"] = [evil, "reward"]
    report["stages"]["sft"]["rows"] = {
        evil: {"read": 1, "dropped": {evil: 1}, "examples": [{"origin": evil, "reason": evil}]}
    }
    report["provenance"]["sft"]["versions"] = {evil: evil}
    assert "<u>" not in render_html(report)


def test_light_dark_phone_and_print_are_styled(html):
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 38rem"):
        assert rule in html


def test_partial_run(run_maker):
    page = Page(write_report(run_maker(stages=["sft"])).read_text(encoding="utf-8"))
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section" and "id" in attributes]
    assert ids == ["verdicts", "stages", "provenance"]
    assert "have not been compared yet" in page.text


def test_evaluation_without_rows_or_replies(run_maker):
    rows = sample_rows(prompts=7, samples=1)
    rows[0]["replies"]["dpo"] = []
    page = Page(write_report(run_maker(rows=rows)).read_text(encoding="utf-8"))
    assert "no reply" in page.text
    assert "No difference shown" in Page(write_report(run_maker(rows=[])).read_text(encoding="utf-8")).text


def test_standfirst(run_maker):
    report = build_report(run_maker())
    assert standfirst(report).startswith(
        "Replies to 120 prompts kept out of training, 4 sampled from each policy at temperature 1, at most 64 tokens"
    )
    assert "greedily" in standfirst({**report, "evaluation": {**report["evaluation"], "temperature": 0}})
