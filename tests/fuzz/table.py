"""The table of docs/fuzzing.md, from the results of all runs in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fuzz.inputs import CODES

PAGE = Path(__file__).parents[2] / "docs/fuzzing.md"
BLOCK = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end -->)", re.DOTALL)


def read(folder: Path) -> list[dict[str, Any]]:
    """The results of all runs in a folder."""
    files = sorted(folder.glob("results-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def table(results: list[dict[str, Any]]) -> str:
    """Kinds of input by exit code; how many went through the command, and for how many something did not hold."""
    more = ["other", "in all", "through the command", "refused by a library", "not as promised", "slowest"]
    head = ["Input", *(str(code) for code in CODES), *more]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for kind in [*dict.fromkeys(result["kind"] for result in results), None]:
        rows = [result for result in results if kind in (None, result["kind"])]
        lines.append([kind or "all", *_counts(rows)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _counts(rows: list[dict[str, Any]]) -> Iterable[str]:
    for code in CODES:
        yield _number(sum(row["code"] == code for row in rows))
    yield _number(sum(row["code"] not in CODES for row in rows))
    yield _number(len(rows))
    yield _number(sum(row["how"] == "command" for row in rows))
    yield _number(sum("the traceback is in" in row["message"] and row["code"] == 2 for row in rows))
    yield _number(sum(bool(row["problems"]) for row in rows))
    yield f"{max(row['seconds'] for row in rows):.0f} s"


def _number(count: int) -> str:
    return f"{count:,}"


def write(folder: Path) -> None:
    """Write the table into the page."""
    text = table(read(folder))
    PAGE.write_text(BLOCK.sub(lambda _: text, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
