"""Answers of a judge, kept in a file, so that a repeated evaluation asks nothing again."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from rlhf.errors import UserError


def request_key(endpoint: str, request: dict[str, Any]) -> str:
    """SHA-256 of where a question goes and of all that is sent (model, messages, settings), without any key."""
    return hashlib.sha256(json.dumps({"endpoint": endpoint, **request}, sort_keys=True).encode()).hexdigest()


class JudgeCache:
    """Answers by request, in a JSON Lines file that is only ever appended to.

    A line is written at once and whole, so a run that is killed loses the answer on its way at most. A line that cannot
    be read, such as one that was torn then, is passed over. Of two answers to one request the later one holds. Neither
    the question nor a key is stored. Threads may share it.

    Args:
        folder: Where `answers.jsonl` lies or will lie; made if it is not there.

    Raises:
        UserError: The folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "answers.jsonl"
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            cause = (error.strerror or str(error)).lower()
            raise UserError(f"rewards: {self.path}: answers cannot be kept: {cause}") from None
        self._torn = not content.endswith(b"\n") and bool(content)
        self._answers = dict(row for row in map(_row, content.splitlines()) if row is not None)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """The answer to a request, or None where it was never asked."""
        with self._lock:
            return self._answers.get(key)

    def add(self, key: str, model: str, answer: str) -> None:
        """Keep an answer, on disk before this returns.

        Args:
            key: Of the request, by `request_key`.
            model: Who answered, for people who read the file.
            answer: Its words.
        """
        line = json.dumps({"key": key, "model": model, "answer": answer}).encode() + b"\n"
        with self._lock:
            with self.path.open("ab") as file:
                file.write(b"\n" + line if self._torn else line)
            self._torn = False
            self._answers[key] = answer


def _row(line: bytes) -> tuple[str, str] | None:
    """Key and answer of a line, or None where it holds none."""
    try:
        row = json.loads(line)
        key, answer = row["key"], row["answer"]
    except (ValueError, KeyError, TypeError):
        return None
    return (key, answer) if isinstance(key, str) and isinstance(answer, str) else None
