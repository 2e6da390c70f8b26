"""A SQLite file whose writes are on disk before they are acknowledged: WAL, synchronous FULL."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from rlhf.errors import UserError

_PATIENCE = 30.0
"""Seconds to wait for another process that writes."""


def open_durable(file: Path, tables: str, version: int) -> sqlite3.Connection:
    """Open a file to read and write; it, its folder and its tables are made if need be.

    Args:
        file: The file.
        tables: SQL that makes its tables, statements parted by semicolons.
        version: Of these tables.

    Raises:
        UserError: The file is damaged, of another version, or cannot be written.
    """
    with explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(str(file))
        for pragma in ("journal_mode = wal", "synchronous = full", "foreign_keys = on"):
            connection.execute(f"pragma {pragma}")
        connection.execute("begin immediate")
        if _version(connection) == 0:
            for statement in filter(str.strip, tables.split(";")):
                connection.execute(statement)
            connection.execute(f"pragma user_version = {version}")
        connection.execute("commit")
        _check_version(connection, file, version)
    return connection


def open_to_read(file: Path, version: int) -> sqlite3.Connection:
    """Open a file to read alone, which changes nothing and works in a folder that cannot be written.

    Args:
        file: The file.
        version: Of its tables.

    Raises:
        UserError: The file is empty, damaged or of another version, or holds writes that cannot be read from there.
    """
    with explained(file):
        address = f"{file.resolve().as_uri()}?mode=ro"
        try:
            connection = _connect(address)
            _version(connection)
        except sqlite3.OperationalError:
            log = file.with_name(f"{file.name}-wal")
            if log.is_file() and log.stat().st_size:  # which would be passed over
                raise
            connection = _connect(f"{address}&immutable=1")
        _check_version(connection, file, version)
    return connection


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """What the system or SQLite says against a file, as a line; so is what its rows do not have.

    Raises:
        UserError: The file cannot be opened, or is damaged.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{file}: {(error.strerror or str(error)).lower()}") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{file}: cannot be used: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged: {type(error).__name__}: {error}") from None


def _connect(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        address, _PATIENCE, isolation_level=None, check_same_thread=False, uri=address.startswith("file:")
    )
    connection.row_factory = sqlite3.Row
    return connection


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("pragma user_version").fetchone()[0]


def _check_version(connection: sqlite3.Connection, file: Path, version: int) -> None:
    """Check the version of a file's tables.

    Raises:
        UserError: It is another.
    """
    given = _version(connection)
    if given == 0:
        raise UserError(f"{file}: nothing was ever written to it; delete it if nobody uses it")
    if given != version:
        raise UserError(f"{file}: of version {given}, and this rlhf reads version {version}")
