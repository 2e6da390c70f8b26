"""Encoded rows to a file that `datasets` maps into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_BATCH = 1000


class ArrowFile:
    """Rows to an Arrow stream, a batch at a time; the first batch sets the types.

    Args:
        path: The file; it is there once `finish` was called.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, path.with_name(path.name + ".partial")
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None
        self._schema: Any = None

    def add(self, columns: dict[str, Any]) -> None:
        """Append a row."""
        self._rows.append(columns)
        if len(self._rows) >= _BATCH:
            self.flush()

    def flush(self) -> Any:
        """Write the rows that are waiting; returns the schema, None if there never was a row."""
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
        """Put the file in its place; one without rows gets the schema of the other side."""
        self.flush()
        self._open(schema)
        self._writer.close()
        self._partial.replace(self.path)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._writer is not None:
            self._writer.close()
        self._partial.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
