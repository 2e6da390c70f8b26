"""What has to be remembered about every row, kept on disk so that memory does not grow with the rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROW, TRAINED, HELD_OUT = 1, 2, 4
"""What a text is remembered as; a sum of these."""

_BATCH = 1000
_CACHE_KIB = 16_000
_TABLES = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA temp_store = FILE;
CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE origin (row INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE pair (key BLOB, row INTEGER);
CREATE TABLE completion (key BLOB, chosen INTEGER, row INTEGER);
CREATE TABLE text (id INTEGER PRIMARY KEY, row INTEGER, shingles BLOB);
CREATE TABLE band (key INTEGER, id INTEGER, kind INTEGER);
CREATE TEMP TABLE contradiction (row INTEGER PRIMARY KEY, earlier INTEGER);
CREATE TEMP TABLE disputed (key BLOB, chosen INTEGER, row INTEGER);
CREATE TEMP TABLE first (key INTEGER PRIMARY KEY, id INTEGER);
"""

Match = tuple[str, str]
"""Origins of a row and of the earlier row that it matches."""


class Index:
    """Digests of rows, prompts and completions, and sketches of texts, in a temporary database.

    While rows are read they are only appended. What they have in common is looked for once, at the end, by sorting.
    The database is deleted when the index is closed.

    Args:
        path: The database's file; None lets SQLite choose a temporary place.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        if path is not None:
            path.unlink(missing_ok=True)  # left behind by a killed process
        self._database = sqlite3.connect("" if path is None else path, isolation_level=None)
        self._database.executescript(_TABLES + f"PRAGMA cache_size = -{_CACHE_KIB};")
        self._database.execute("BEGIN")
        self._waiting: dict[str, list[tuple[Any, ...]]] = {
            "INSERT INTO origin VALUES (?, ?)": [],
            "INSERT INTO pair VALUES (?, ?)": [],
            "INSERT INTO completion VALUES (?, ?, ?)": [],
            "INSERT INTO text VALUES (?, ?, ?)": [],
            "INSERT INTO band VALUES (?, ?, ?)": [],
        }
        self._origins, self._pairs, self._completions, self._texts, self._bands = self._waiting.values()
        self._rows = self._sketched = 0

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def add(self, key: bytes) -> bool:
        """Remember a key; returns whether it is new."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1

    def __contains__(self, key: bytes) -> bool:
        return self._database.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None

    def row(self, origin: str) -> int:
        """Assign a row the number that it is remembered by."""
        self._rows += 1
        self._origins.append((self._rows, origin))
        if len(self._origins) >= _BATCH:
            self._flush()
        return self._rows

    def preference(self, row: int, pair: bytes, chosen: bytes, rejected: bytes) -> None:
        """Remember a preference.

        Args:
            row: Its number.
            pair: Key of the prompt and both completions, whichever is preferred.
            chosen: Key of the prompt and the preferred completion.
            rejected: Key of the prompt and the rejected completion.
        """
        self._pairs.append((pair, row))
        self._completions += [(chosen, 1, row), (rejected, 0, row)]

    def text(self, row: int, kind: int, shingles: NDArray[np.uint32]) -> None:
        """Remember the shingles of a text.

        Args:
            row: Number of its row.
            kind: Sum of ROW, TRAINED and HELD_OUT.
            shingles: See `near.shingles`; a text without any is not remembered.
        """
        from rlhf.data.near import band_keys

        if not len(shingles):
            return
        self._sketched += 1
        self._texts.append((self._sketched, row, shingles.tobytes()))
        self._bands += [(key, self._sketched, kind) for key in band_keys(shingles)]

    def contradictions(self) -> Iterator[Match]:
        """Rows with the same prompt and completions as an earlier row, but with the opposite preference.

        Duplicate rows must have been dropped before.
        """
        self._flush()
        self._database.execute(
            "INSERT INTO contradiction SELECT pair.row, common.row FROM pair "
            "JOIN (SELECT key, min(row) AS row FROM pair GROUP BY key HAVING count(*) > 1) AS common USING (key) "
            "WHERE pair.row > common.row"
        )
        yield from self._matches("SELECT row, earlier FROM contradiction ORDER BY row")

    def conflicts(self) -> Iterator[Match]:
        """Rows, apart from `contradictions`, with a completion that an earlier row judges the other way."""
        self._flush()
        self._database.execute(
            "INSERT INTO disputed SELECT key, chosen, min(row) FROM completion "
            "WHERE key IN (SELECT key FROM completion GROUP BY key HAVING min(chosen) < max(chosen)) "
            "GROUP BY key, chosen"
        )
        yield from self._matches(
            "SELECT completion.row, min(disputed.row) FROM completion JOIN disputed USING (key) "
            "WHERE completion.chosen <> disputed.chosen AND completion.row > disputed.row "
            "AND completion.row NOT IN (SELECT row FROM contradiction) "
            "GROUP BY completion.row ORDER BY completion.row"
        )

    def near_duplicates(self) -> Iterator[Match]:
        """Texts of kind ROW that nearly repeat an earlier one."""
        self._first("SELECT key, min(id) FROM band WHERE kind & 1 GROUP BY key HAVING count(*) > 1")
        yield from self._near(ROW)

    def leaks(self) -> Iterator[Match]:
        """Texts of kind HELD_OUT that nearly repeat one of kind TRAINED."""
        self._first(
            "SELECT key, min(id) FROM band WHERE kind & 2 AND key IN (SELECT key FROM band WHERE kind & 4) GROUP BY key"
        )
        yield from self._near(HELD_OUT)

    def _first(self, select: str) -> None:
        """For each band, choose the text to compare the others with: comparing all with all would be quadratic."""
        self._flush()
        self._database.execute("DELETE FROM first")
        self._database.execute(f"INSERT INTO first {select}")

    def _near(self, kind: int) -> Iterator[Match]:
        import numpy as np

        from rlhf.data.near import THRESHOLD, jaccard

        def fetch(number: int) -> tuple[int, NDArray[np.uint32]]:
            row, blob = self._database.execute("SELECT row, shingles FROM text WHERE id = ?", (number,)).fetchone()
            return row, np.frombuffer(blob, np.uint32)

        candidates = self._database.execute(
            "SELECT DISTINCT band.id, first.id FROM band JOIN first USING (key) "
            "WHERE band.kind & ? AND (band.id > first.id OR ? = 4) ORDER BY band.id, first.id",
            (kind, kind),
        )
        matched = 0
        for text, candidate in candidates:
            if text == matched:
                continue
            (row, text_shingles), (earlier, candidate_shingles) = fetch(text), fetch(candidate)
            if jaccard(text_shingles, candidate_shingles) >= THRESHOLD:
                matched = text
                yield self._origin(row), self._origin(earlier)

    def _matches(self, select: str) -> Iterator[Match]:
        for row, earlier in self._database.execute(select):
            yield self._origin(row), self._origin(earlier)

    def _origin(self, row: int) -> str:
        return str(self._database.execute("SELECT name FROM origin WHERE row = ?", (row,)).fetchone()[0])

    def _flush(self) -> None:
        for statement, rows in self._waiting.items():
            self._database.executemany(statement, rows)
            rows.clear()
