"""Files to rows: a streaming function for each kind of file, which reports the place of every mistake.

Each reader takes a file and its name in messages, and yields `(row, origin)`. Gzip is recognised by its first bytes,
whatever the file is called.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

_SPACE = re.compile(r"\s*")
_OPENING = re.compile(r'\{\s*("version"\s*:\s*"[^"]*"\s*,\s*)?"data"\s*:\s*\[')

Row = dict[str, Any]
Rows = Iterator[tuple[Row, str]]

_CHUNK = 1 << 20
_LONGEST_ROW = 64 << 20
"""Most bytes in a row (or in a cell of a table); a long book has a million."""
_UNPACKED, _RATIO = 16 << 20, 200
"""A packed file may unpack to this many bytes, or to this many times its size: text packs 10:1, a bomb 1000:1."""


def read_jsonl(path: Path, name: str) -> Rows:
    """Rows of a file with a JSON object on each line; blank lines are skipped. Origin: the line."""
    for number, line in _lines(path, name):
        if line.strip():
            yield _object(_parse(line, name, number), f"{name}:{number}"), f"{name}:{number}"


def read_json(path: Path, name: str) -> Rows:
    """Rows of a JSON array of objects (origin: the number in the array), or of JSON lines under the name `.json`.

    The array may also be `data` of a single object, as in SQuAD's files.
    """
    text = _Text(path, name)
    text.skip()
    if text.next in ("[", ""):
        return _array(text, name)
    whole = _element(text) if _OPENING.match(text.buffer, text.start) else {}
    text.skip()
    if whole and not text.next:
        return ((_object(row, f"{name}#{number}"), f"{name}#{number}") for number, row in enumerate(whole["data"], 1))
    return read_jsonl(path, name)


def read_csv(path: Path, name: str, delimiter: str = ",") -> Rows:
    """Rows of a table with a header, every value as text. Origin: the line that the row starts on.

    Raises:
        UserError: A row has more or fewer cells than the header, or a quote is never closed.
    """
    csv.field_size_limit(_LONGEST_ROW)
    reader = csv.reader((line for _, line in _lines(path, name)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{name}:{start}: not valid CSV: {error}") from None
        origin, start = f"{name}:{start}", reader.line_num + 1
        if not cells:
            continue
        if header is None:
            header = _header(cells, origin)
            continue
        if len(cells) != len(header):
            raise UserError(f"{origin}: {len(cells)} cells in a table of {len(header)} columns ({', '.join(header)})")
        yield dict(zip(header, cells, strict=True)), origin


def read_parquet(path: Path, name: str) -> Rows:
    """Rows of a Parquet file, a batch at a time; classes that `datasets` numbered by name. Origin: the row's number."""
    import pyarrow
    from pyarrow import parquet

    number = unpacked = 0
    try:
        with parquet.ParquetFile(path) as file:
            _header(file.schema_arrow.names, name)
            names = _class_names(file.schema_arrow.metadata)
            for batch in file.iter_batches(batch_size=1024):
                unpacked += batch.nbytes
                _hold_ratio(unpacked, path.stat().st_size, name)
                for row in batch.to_pylist():
                    number += 1
                    yield with_names(row, names), f"{name}#{number}"
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        # the last two: text that is no UTF-8, a date that Python cannot hold
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: not a readable Parquet file (after row {number}): {reason}") from None


def with_names(row: Row, names: dict[str, list[str]]) -> Row:
    """A row with the names of its numbered classes; -1, which `datasets` writes where there is none, becomes null.

    Args:
        row: The row.
        names: The names of the classes of a column, in the order of their numbers.
    """
    named = {}
    for column, classes in names.items():
        number = row.get(column)
        if isinstance(number, int) and -1 <= number < len(classes):
            named[column] = classes[number] if number >= 0 else None
    return {**row, **named}


def _class_names(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of classes by column, from what `datasets` writes into a Parquet file's schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _header(cells: list[str], origin: str) -> list[str]:
    twice = next((cell for cell, count in Counter(cells).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{origin}: the header names column {twice!r} twice")
    return cells


READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": lambda path, name: read_csv(path, name, "\t"),
    ".parquet": read_parquet,
}
"""The reader for each suffix, which may be followed by `.gz`."""


def reader_of(name: str) -> Callable[[Path, str], Rows] | None:
    """The reader for a file name; None if the suffix is not that of a data file."""
    return READERS.get(Path(name.lower().removesuffix(".gz")).suffix)


def read_file(path: Path, name: str) -> Rows:
    """Rows of one file.

    Raises:
        UserError: Its kind is unknown, it cannot be read, or it has no rows.
    """
    reader = reader_of(path.name)
    if reader is None:
        raise UserError(f"{name}: unknown kind of file (known: {', '.join(READERS)}, each also with .gz)")
    row = None
    for row in reader(path, name):
        yield row
    if row is None:
        raise UserError(f"{name}: the file is empty" if path.stat().st_size == 0 else f"{name}: no rows in the file")


def _blocks(path: Path, name: str) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in blocks.

    Raises:
        UserError: The file is unreadable or damaged, or unpacks to far more than its size.
    """
    unpacked = 0
    try:
        with path.open("rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            while block := file.read(_CHUNK):
                unpacked += len(block)
                _hold_ratio(unpacked, raw.tell(), name)
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name}: the gzip file is cut short or damaged: {error}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def _hold_ratio(unpacked: int, packed: int, name: str) -> None:
    if unpacked > max(_UNPACKED, _RATIO * packed):
        raise UserError(
            f"{name}: unpacks to more than {_RATIO} times its size, as no set of texts does; if it is meant to, unpack "
            "it first (of Parquet, to JSON lines)"
        )


def _split(path: Path, name: str) -> Iterator[bytes]:
    """Lines of a file with their line ends."""
    rest, number = b"", 0
    for block in _blocks(path, name):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line + b"\n"
        number += len(lines)
        if len(rest) > _LONGEST_ROW:
            raise UserError(f"{name}:{number + 1}: a line of more than {_LONGEST_ROW >> 20} MiB; each row has its own")
    if rest:
        yield rest


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file in UTF-8 with their line ends, without a byte-order mark."""
    for number, line in enumerate(_split(path, name), 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            column = len(line[: error.start].decode("utf-8")) + 1
            raise _not_text(name, number, column, line[error.start]) from None


def _not_text(name: str, line: int, column: int, byte: int) -> UserError:
    return UserError(f"{name}:{line}:{column}: not text in UTF-8 (byte 0x{byte:02x})")


def _parse(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # an error behind the line's end (something is missing) is reported at its end
        column = min(error.colno if error.lineno == 1 else len(text), len(text.rstrip("\r\n")) + 1)
        message = error.msg.lower().removesuffix(" starting at")
        raise UserError(f"{name}:{line}:{column}: not valid JSON: {message}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}:{line}: not valid JSON: {error}") from None


def _object(value: Any, origin: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{origin}: expected an object with named columns, not {json.dumps(value)[:40]}")
    return value


class _Text:
    """A window on a long text: what has been read but not consumed, and the line and column where it starts."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._blocks = _blocks(path, name)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.buffer = ""
        self.start = 0
        self.line = self.column = 1

    @property
    def next(self) -> str:
        """The next character; empty at the end."""
        while self.start == len(self.buffer) and self.more():
            pass
        return self.buffer[self.start : self.start + 1]

    def more(self) -> bool:
        """Read on and forget what was consumed; False at the end of the file."""
        self.buffer, self.start = self.buffer[self.start :], 0
        block = next(self._blocks, None)
        try:
            self.buffer += self._decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            self.buffer += error.object[: error.start].decode("utf-8")
            raise _not_text(self.name, *self.place(len(self.buffer)), error.object[error.start]) from None
        return block is not None

    def place(self, end: int) -> tuple[int, int]:
        """Line and column of an index of the buffer."""
        newlines = self.buffer.count("\n", self.start, end)
        if not newlines:
            return self.line, self.column + end - self.start
        return self.line + newlines, end - self.buffer.rfind("\n", self.start, end)

    def consume(self, end: int) -> None:
        """Move the window's start to an index of the buffer."""
        self.line, self.column = self.place(end)
        self.start = end

    def skip(self, character: str = "") -> None:
        """Consume one such character, then white space."""
        if character:
            self.consume(self.start + 1)
        while self.next and self.next.isspace():
            self.consume(_SPACE.match(self.buffer, self.start).end())  # type: ignore[union-attr]  # it matches nothing

    def error(self, message: str, at: int | None = None) -> UserError:
        """The error for a mistake at an index of the buffer, by default at the window's start."""
        line, column = self.place(self.start if at is None else at)
        return UserError(f"{self.name}:{line}:{column}: not valid JSON: {message}")


def _array(text: _Text, name: str) -> Rows:
    """Objects of a JSON array, one at a time."""
    if not text.next:
        return
    text.skip("[")
    number = 0
    while text.next != "]":
        number += 1
        if text.next != "{":
            raise text.error("expected an object with named columns" if text.next else "the array is never closed")
        yield _element(text), f"{name}#{number}"
        text.skip()
        if text.next == ",":
            text.skip(",")
            if text.next == "]":
                raise text.error("a comma before the closing bracket")
        elif text.next != "]":
            raise text.error("expected ',' or ']'" if text.next else "the array is never closed")
    text.skip("]")
    if text.next:
        raise text.error("something follows the array")


def _element(text: _Text) -> Any:
    """The object at the start of the window, reading on as long as it may merely be incomplete."""
    decoder = json.JSONDecoder()
    while True:
        if len(text.buffer) - text.start > _LONGEST_ROW:
            raise text.error(f"an object of more than {_LONGEST_ROW >> 20} MiB, or one that is never closed")
        try:
            value, end = decoder.raw_decode(text.buffer, text.start)
            text.consume(end)
            return value
        except json.JSONDecodeError as error:
            # a string without an end, or a mistake in the last characters, may be the end of what was read so far
            cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(text.buffer) - 16
            offset = error.pos - text.start  # reading on moves the start
            if not (cut_off and _read_on(text)):
                message = error.msg.lower().removesuffix(" starting at")
                raise text.error(message, min(text.start + offset, len(text.buffer))) from None
        except (ValueError, RecursionError) as error:
            raise text.error(str(error)) from None


def _read_on(text: _Text) -> bool:
    """Double the window, so that a long object is parsed few times; False at the end of the file."""
    wanted = 2 * (len(text.buffer) - text.start)
    grown = text.more()
    while grown and len(text.buffer) < wanted and text.more():
        pass
    return grown
