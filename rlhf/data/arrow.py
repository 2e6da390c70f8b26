"""Writes encoded rows to a file that `datasets` maps into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_BATCH = 1000


class ArrowFile:
    """Writes rows to an Arrow stream, a batch at a time; the first rows determine the types.

    Args:
        path: The file, which appears when `finish` is called.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, path.with_name(path.name + ".partial")
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None
        self._schema: Any = None

    def add(self, columns: dict[str, Any]) -> None:
        """Append a row."""
        self._rows.append(columns)
        if len(self._rows) % _BATCH == 0 and (self._schema is not None or not self._undetermined()):
            self.flush()

    def _undetermined(self) -> bool:
        """Whether a column of the buffered rows has nothing but empty lists, which do not tell their type."""
        return any(
            isinstance(value, list) and not any(row[column] for row in self._rows)
            for column, value in self._rows[0].items()
        )

    def flush(self) -> Any:
        """Write the buffered rows; returns the schema, or None if there has been no row."""
        import pyarrow

        if self._rows:
            table = pyarrow.Table.from_pylist(self._rows, schema=self._schema)
            self._open(table.schema)
            self._writer.write_table(table)
            self._rows.clear()
        return self._schema

    def _open(self, schema: Any) -> None:
        import pyarrow

        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._schema, self._writer = schema, pyarrow.ipc.new_stream(str(self._partial), schema)

    def finish(self, schema: Any) -> None:
        """Complete the file and move it into place.

        Args:
            schema: The schema to use if there has been no row.
        """
        self.flush()
        self._open(schema)
        self._writer.close()
        self._partial.replace(self.path)

    def discard(self) -> None:
        """Delete what was written so far, and the folder if it is empty."""
        if self._writer is not None:
            self._writer.close()
        self._partial.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
