"""The site that `make docs` builds: every page has its place, links lead somewhere, nothing comes from elsewhere."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt

from rlhf.config import trainer_fields
from rlhf.config.project import ProjectConfig
from tests.support.pages import ROOT

DOCS = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


class _Loose(yaml.SafeLoader):
    """Reads mkdocs.yml, whose slugify names a Python function."""


_Loose.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def in_navigation(entries: list) -> set[str]:
    """The pages of a navigation."""
    found = set()
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else (entry,):
            found |= {value} if isinstance(value, str) else in_navigation(value)
    return found


def test_every_page_has_a_place_in_the_navigation():
    """A new page of docs/ needs a line under `nav:` in mkdocs.yml."""
    listed = in_navigation(yaml.load((ROOT / "mkdocs.yml").read_text(), _Loose)["nav"])
    pages = set(DOCS)
    assert not pages - listed
    tops = {"overview.md", "contributing.md", "security.md", "changelog.md"}
    assert not {page for page in listed - pages - tops if not page.startswith("reference/")}


class Tags(HTMLParser):
    """What a page loads, and how many of some elements it has."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what is loaded without a click."""
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.loads.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` does; that torch is not imported is noted."""
    folder = tmp_path_factory.mktemp("site")
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
        "from mkdocs.__main__ import cli; cli()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "False"
    return folder


@pytest.mark.slow
def test_no_page_loads_anything_from_another_server(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for path in pages:
        tags = Tags()
        tags.feed(path.read_text(encoding="utf-8"))
        assert not [url for url in tags.loads if re.match(r"(https?:)?//", url)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


class Structure(HTMLParser):
    """How many elements of a kind the text of a page has."""

    KINDS = ("h1", "h2", "h3", "ol", "ul", "li", "table", "tr", "strong", "em", "img")

    def __init__(self, within: str | None) -> None:
        super().__init__()
        self.within, self.depth, self.counts = within, int(within is None), Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count an element."""
        self.depth += tag == self.within
        classes = (dict(attrs).get("class") or "").split()
        if self.depth and (tag in self.KINDS or (tag == "div" and "highlight" in classes)):
            self.counts["block" if tag == "div" else tag] += 1

    def handle_endtag(self, tag: str) -> None:
        """Leave the text."""
        self.depth -= tag == self.within


@pytest.mark.slow
@pytest.mark.parametrize("page", DOCS)
def test_a_page_is_read_on_the_site_as_in_the_repository(site, page):
    """As many headings, items of lists, cells and blocks: two dialects of Markdown, and one meaning."""
    repository, built = Structure(None), Structure("article")
    html = MarkdownIt("commonmark").enable("table").render((ROOT / "docs" / page).read_text(encoding="utf-8"))
    repository.feed(html)
    repository.counts["block"] = html.count("<pre>")
    built.feed((site / page).with_suffix(".html").read_text(encoding="utf-8"))
    assert built.counts == repository.counts


@pytest.mark.slow
def test_the_reference_has_every_setting_command_and_field(site):
    text = {name: (site / f"reference/{name}.html").read_text(encoding="utf-8") for name in
            ("project", "stages", "commands", "report")}  # fmt: skip
    for field in dataclasses.fields(ProjectConfig):
        assert (f"<code>{field.name}</code>" in text["project"]) == (field.name not in ("path", "overrides", "round"))
    for stage in trainer_fields.trained_stages():
        for name in trainer_fields.trainer_fields(stage):
            assert f"<code>{name}</code>" in text["stages"], (stage, name)
    from rlhf.cli import app

    for command in app.registered_groups:
        for registered in command.typer_instance.registered_commands:
            assert f"rlhf {registered.name or registered.callback.__name__}" in text["commands"]
    for node in ast.parse((ROOT / "rlhf/report/schema.py").read_text()).body:
        if isinstance(node, ast.ClassDef):
            names = [line.target.id for line in node.body if isinstance(line, ast.AnnAssign)]
            assert not [name for name in names if f"<code>{name}</code>" not in text["report"]], node.name
    assert "gae" in (site / "reference/python/objectives.html").read_text(encoding="utf-8")
