"""The tree of docs/architecture.md: a line for each file of the package, from the first sentence of its docstring.

`python -m tests.support.tree` writes it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/architecture.md"
BLOCK = re.compile(r"(?<=```text package\n).*?(?=```)", re.DOTALL)
WIDTH, LONGEST = 30, 100
WITHOUT_DOCSTRING = {
    "rlhf": "the package",
    "templates": "wording and style",
    "py.typed": "the package has type hints",
    "model_card.md": "wording of the model card",
    "report.html": "the report's page",
    "report.css": "its style",
    "charts.html": "its charts, as SVG",
    "report.md": "the same report in Markdown",
    "static": "style, behaviour and icon of the pages",
    "arena.css": "their style, light and dark",
    "arena.js": "their behaviour: keys, streams, votes",
    "icon.svg": "their icon",
    "base.html": "what all pages share",
    "name.html": "asks who judges",
    "judge.html": "a prompt and two replies",
    "waiting.html": "nothing to judge yet, or any more",
    "write.html": "a prompt of one's own",
    "results.html": "what the votes say",
    "message.html": "why something is not possible",
}
"""What is not Python, by name."""


def line_of(path: Path, depth: int) -> str:
    """The line of a file, or of a folder, which stands for its `__init__.py`."""
    name = f"{path.name}/" if path.is_dir() else path.name
    return f"{'  ' * depth}{name}".ljust(WIDTH) + "  " + description(path)


def description(path: Path) -> str:
    """First sentence of the docstring, or its beginning where that is long."""
    source = path / "__init__.py" if path.is_dir() else path
    if path.name in WITHOUT_DOCSTRING:
        return WITHOUT_DOCSTRING[path.name]
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"\.(?:\s|$)", text.partition("\n")[0])[0]
    return sentence if len(sentence) <= LONGEST else re.split(r"[;:] ", sentence)[0]


def lines(folder: Path, depth: int = 0) -> Iterator[str]:
    """A folder's line and those of what is in it, files first."""
    yield line_of(folder, depth)
    inner = [path for path in sorted(folder.iterdir()) if not path.name.startswith(("__init__", "__pycache__", "."))]
    for path in sorted(inner, key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir():
            yield from lines(path, depth + 1)
        else:
            yield line_of(path, depth + 1)


def tree() -> str:
    """All lines, each ended."""
    return "".join(f"{line}\n" for line in lines(ROOT / "rlhf"))


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(lambda _: tree(), PAGE.read_text(encoding="utf-8"), count=1), encoding="utf-8")
