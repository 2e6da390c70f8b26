"""What mkdocs does besides its own: pages of Reference, and links to files of the repository.

The pages of docs/ are written to be read in the repository, too, so their links are relative to it. A file outside of
docs/ that a page links to becomes a page of the site below `files/`, and the link leads there.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import markdown
import reference
from markdown.blockprocessors import ListIndentProcessor, OListProcessor, UListProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_LANGUAGES = {
    ".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".txt": "text", ".toml": "toml", ".jinja": "jinja",
}  # fmt: skip
_TOP = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md",
        "CHANGELOG.md": "changelog.md"}  # fmt: skip
"""Pages at the top of the repository, and where they are in the site."""
_NOT_PROSE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^\n`]*)\n.*?^ *(?P=fence)[ ]*$|(?P<code>`+)[^`].*?(?P=code)",
    re.MULTILINE | re.DOTALL,
)
"""Fenced blocks, and code within a line."""
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_OF_LISTS = (("indent", ListIndentProcessor, 90), ("olist", OListProcessor, 40), ("ulist", UListProcessor, 30))
"""Under the names and priorities of Python-Markdown, so that they replace its own."""
_origins: dict[str, str] = {}
"""Path of a page in the site -> path in the repository."""


class ShortIndents(markdown.Extension):
    """Two spaces suffice to stand within an item of a list, as in the repository's own rendering."""

    def extendMarkdown(self, md: markdown.Markdown) -> None:
        """Make the processors of lists anew, which read the length of an indent when they are made."""
        usual, md.tab_length = md.tab_length, 2
        for name, processor, priority in _OF_LISTS:
            md.parser.blockprocessors.register(processor(md.parser), name, priority)
        md.tab_length = usual


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the extension, and the pages of the packages to the navigation."""
    config.markdown_extensions.append(ShortIndents())
    (section,) = (entry["Reference"] for entry in config.nav if "Reference" in entry)
    (python,) = (entry for entry in section if isinstance(entry, dict) and "Python" in entry)
    python["Python"] = ["reference/python.md", *(f"reference/python/{name}.md" for name in reference.rooms())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of Reference, those at the top of the repository, and every file that a page links to."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{path}", content=text))
    _origins.clear()
    todo = list(_TOP)
    for file in files:
        if file.is_documentation_page() and not file.src_uri.startswith("reference/"):
            _origins[file.src_uri] = f"docs/{file.src_uri}"
            todo += _linked(_origins[file.src_uri])
    while todo:
        path = todo.pop()
        place = site_path(path)
        if path.startswith("docs/") or place in _origins or not (ROOT / path).exists():
            continue
        _origins[place] = path
        file, more = _file(path, place, config)
        files.append(file)
        todo += more
    return files


def _linked(page: str) -> list[str]:
    """The files and folders of the repository that a page links to."""
    prose = _NOT_PROSE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [_target(page, match["path"]) for match in _LINK.finditer(prose)]


def _target(page: str, link: str) -> str:
    """What a link of a page leads to, from the top of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def site_path(path: str) -> str:
    """Where a file or folder of the repository is in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in _TOP:
        return _TOP[path]
    if (ROOT / path).is_dir():
        return f"files/{path}/README.md"
    return f"files/{path}.md" if Path(path).suffix in _LANGUAGES else f"files/{path}"


def _file(path: str, place: str, config: MkDocsConfig) -> tuple[File, list[str]]:
    """The page of a file or folder, and what it links to."""
    source = ROOT / path
    if source.is_dir() and (source / "README.md").is_file():
        path, source = f"{path}/README.md", source / "README.md"
        _origins[place] = path
    if source.suffix == ".md":
        return File.generated(config, place, content=source.read_text(encoding="utf-8")), _linked(path)
    head = f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n"
    if source.is_dir():
        inner = sorted(each.name for each in source.iterdir() if not each.name.startswith(("_", ".")))
        return File.generated(config, place, content=head + "".join(f"* `{name}`\n" for name in inner)), []
    if source.suffix in _LANGUAGES:
        code = source.read_text(encoding="utf-8")
        return File.generated(config, place, content=f"{head}``````{_LANGUAGES[source.suffix]}\n{code}``````\n"), []
    return File.generated(config, place, abs_src_path=str(source)), []


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where the site has the file, and give a fenced block the name of its file as its title."""
    here = page.file.src_uri
    origin = _origins.get(here)
    if origin is None or (not origin.endswith(".md")):
        return text
    parts, end = [], 0
    for match in _NOT_PROSE.finditer(text):
        parts += [_relinked(text[end : match.start()], origin, here), _titled(match)]
        end = match.end()
    return "".join([*parts, _relinked(text[end:], origin, here)])


def _relinked(prose: str, origin: str, here: str) -> str:
    def there(match: re.Match[str]) -> str:
        place = site_path(_target(origin, match["path"]))
        return posixpath.relpath(place, posixpath.dirname(here) or ".") + (match["anchor"] or "")

    return _LINK.sub(there, prose)


def _titled(match: re.Match[str]) -> str:
    """A block as it is, but for "```python judge.py", where the name becomes the title."""
    if not match["fence"] or " " not in match["info"]:
        return match[0]
    language, name = match["info"].split(" ", 1)
    title = f' title="{name}"' if "." in name else ""
    first = f"{match['indent']}{match['fence']}{match['info']}"
    return f"{match['indent']}{match['fence']}{language}{title}" + match[0].removeprefix(first)
