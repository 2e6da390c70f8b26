"""The command in this process, and files for it."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("error: ")


class Terminal(io.StringIO):
    """Somebody who types these lines."""

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return True


@pytest.fixture
def rlhf(tmp_path, monkeypatch, capsys) -> Callable[..., Ended]:
    """Runs `rlhf` in a folder of its own; `typed` is what is typed in a terminal, None for no terminal."""
    monkeypatch.chdir(tmp_path)

    def run(*words: Any, typed: str | None = None) -> Ended:
        from rlhf.cli import main

        handler = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO() if typed is None else Terminal(typed))
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
        written = capsys.readouterr()
        return Ended(code, written.out, written.err)

    return run


@pytest.fixture
def put(tmp_path) -> Callable[..., str]:
    """Writes rows as JSON lines, and returns the file's name."""

    def write(name: str, rows: list[dict[str, Any]]) -> str:
        path = Path(tmp_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return name

    return write
