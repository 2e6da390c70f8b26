from __future__ import annotations

import copy
import re
from html.parser import HTMLParser

import pytest

from rlhf.report.build import build_report, read_report, write_report
from rlhf.report.html import render_html, standfirst
from rlhf.report.sentences import statements
from tests.support.reports import fake_full_run, sample_rows

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
    assert ids == ["verdicts", "comparisons", "policies", "stages", "replies", "data", "provenance"]
    assert page.text.index("DPO is better than SFT on gold.") < page.text.index("Judged by")
    assert sum(tag == "polyline" for tag, _ in page.tags) > 10
    assert sum(tag == "article" for tag, _ in page.tags) == 60
    for name in ("nan", "undefined", "None"):
        assert not re.search(rf'="[^"]*\b{name}\b[^"]*"', html)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> dict:
    """The contents of report.json of a run that has everything."""
    run = fake_full_run(tmp_path_factory.mktemp("runs") / "full", prompts=24, samples=2)
    write_report(run)
    return read_report(run)


def _sections(page: Page) -> list[str | None]:
    return [attributes["id"] for tag, attributes in page.tags if tag == "section" and "id" in attributes]


def test_a_full_page_has_every_section_in_order(full):
    page = Page(render_html(full))
    assert _sections(page) == ["verdicts", "comparisons", "policies", "gate", "overoptimisation", "retained", "stages",
                               "replies", "data", "provenance"]  # fmt: skip
    for statement in statements(full):
        assert page.text.count(f"{statement.finding}.") == 1, "said, and not twice"
    for words in ("step 60 kept", "Over several seeds", "By topic", "at equal length", "as sure as right", "judge-70b",
                  "pairs also stand in the other order", "about 650 held-out pairs"):  # fmt: skip
        assert words in page.text, words
    alarms = [a for tag, a in page.tags if tag == "li" and "alarm" in (a.get("class") or "")]
    assert len(alarms) == 3
    assert "nan" not in " ".join(a.get("points", "") or "" for tag, a in page.tags if tag == "polyline")


@pytest.mark.parametrize(
    ("change", "section"),
    [
        (lambda report: report["stages"].pop("gate"), "gate"),
        (lambda report: report["stages"]["ppo"].pop("tracked"), "overoptimisation"),
        (lambda report: report.update(retained=[]), "retained"),
        (lambda report: report.update(samples=[]), "replies"),
        (lambda report: report.update(comparisons=[]), "comparisons"),
        (lambda report: report.update(policies=[], samples=[]), "policies"),
        (lambda report: [stage.update(rows={}, findings=None) for stage in report["stages"].values()], "data"),
    ],
)  # fmt: skip
def test_a_section_without_content_is_absent(full, change, section):
    report = copy.deepcopy(full)
    assert section in _sections(Page(render_html(report)))
    change(report)
    assert section not in _sections(Page(render_html(report)))


def test_no_chart_is_without_labelled_axes(full):
    """Every SVG with ticks has both of its axes named: strips by the line below them, the others inside."""
    html = render_html(full)
    charts_ = re.findall(r"<svg viewBox.*?</svg>", html, re.DOTALL)
    assert len(charts_) > 20
    for chart in charts_:
        labels = re.findall(r'<text class="unit"[^>]*>([^<]*)</text>', chart)
        assert len(labels) == 2
        assert all(labels)
    panels = re.findall(r'<div class="panel">.*?</div>\s*<p class="unit">([^<]*)</p>', html, re.DOTALL)
    assert len(panels) == html.count('<div class="panel">')
    assert all(panels)


def test_a_reply_is_marked_against_its_parent(full):
    report = copy.deepcopy(full)
    report["samples"] = report["samples"][:1]
    replies = {"sft": "Hello Mei, we <b>look</b> at it.", "dpo": "Hello Mei, we <b>fixed</b> it.", "ppo": "No."}
    for policy, text in replies.items():
        report["samples"][0]["replies"][policy][0]["text"] = text
    html = render_html(report)
    assert "<del>look</del><ins>fixed</ins>" in html.replace(" </", "</")
    assert "<b>look" not in html
    assert html.count("marked against SFT") == 1


def test_page_loads_nothing_and_runs_nothing(full):
    html = render_html(full)
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
    report["provenance"]["gate"] = {}
    evil = "<u>x</u>"
    report["name"] = evil
    report["comparisons"][0]["judge"] = evil
    report["evaluation"]["judges"] = [evil, "reward"]
    report["stages"]["sft"]["rows"] = {
        evil: {"read": 1, "dropped": {evil: 1}, "examples": [{"origin": evil, "reason": evil}]}
    }
    report["provenance"]["sft"]["versions"] = {evil: evil}
    report["stages"]["sft"]["findings"] = {"lines": [evil], "set": evil, "findings": []}
    report["stages"]["sft"] |= {"overoptimised": evil, "selected_step": evil}
    report["stages"]["gate"] = {
        "passed": False,
        "policy": evil,
        "models": {
            evil: {
                "passed": False,
                "reasons": [evil],
                "advice": [evil],
                "notes": [evil],
                "accuracy": 0.5,
                "accuracy_ci": [0.4, 0.6],
                "length_baseline": 0.5,
                "length_baseline_ci": [0.4, 0.6],
                "prompts": 1,
                "prefers_longer": None,
                "by_length": [],
                "calibration": [],
                "invariance": {"batch": 0.0, "eos": None},
                "scores": {"edges": [0.0, 1.0]},
                "ece": None,
                "n": 1,
            }
        },
    }
    assert "<u>" not in render_html(report)


def test_light_dark_phone_and_print_are_styled(html):
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 38rem"):
        assert rule in html


def test_partial_run(run_maker):
    page = Page(write_report(run_maker(stages=["sft"])).read_text(encoding="utf-8"))
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section" and "id" in attributes]
    assert ids == ["verdicts", "stages", "data", "provenance"]
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
