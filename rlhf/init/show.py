"""A row of a file as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlhf.data.formats import find
from rlhf.data.inspector import contents
from rlhf.data.records import Feedback, Labelled, Prompt, Record, Spanned, Unusable, as_chat
from rlhf.data.sources import read_rows
from rlhf.data.splits import completions
from rlhf.init.reading import Reading

_WIDTH = 70


def shown_columns(path: str, reading: Reading, split: str | None = None) -> list[str]:
    """Which column becomes what, and the first usable row as it is read.

    Args:
        path: The source.
        reading: How it is read.
        split: Which of its splits.
    """
    lines = [f"{ours} is the column {theirs!r}" for ours, theirs in reading.columns.items()]
    for column, meanings in reading.values.items():
        pairs = ", ".join(f"{theirs} is {_word(ours)}" for theirs, ours in meanings.items())
        lines.append(f"of {column}, {pairs}")
    if reading.chat:
        lines.append("its plain text becomes a conversation")
    record = _first(path, reading, split)
    return [*lines, *([] if record is None else ["its first row:", *(f"  {line}" for line in _parts(record))])]


def _first(path: str, reading: Reading, split: str | None) -> Record | None:
    for row, origin in read_rows(reading.source(path, split=split, streaming=True), Path.cwd()):
        try:
            record = find(reading.format, row, origin).records(row, origin)[0]
            return as_chat(record) if reading.chat else record
        except (Unusable, IndexError):
            continue
    return None


def _parts(record: Record) -> Iterator[str]:
    match record:
        case Labelled():
            yield f"text: {_short(record.text)}"
            yield f"class: {', '.join(record.labels)}"
            return
        case Spanned():
            yield f"question: {_short(record.question)}"
            return
    yield f"prompt: {_short(contents(record.prompt))}"
    if isinstance(record, Prompt):
        return
    names = ("good" if record.label else "bad",) if isinstance(record, Feedback) else ("better", "worse")
    sides = completions(record)
    for name, side in zip(names if len(sides) > 1 or isinstance(record, Feedback) else ("reply",), sides, strict=True):
        yield f"{name}: {_short(contents(side))}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    line = line if len(line) <= _WIDTH else f"{line[: _WIDTH - 2]} …"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def _word(value: object) -> str:
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return "good" if value else "bad"
    return f"the {'first' if value == 1 else 'second'}"
