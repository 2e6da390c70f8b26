"""The answers of a judge, kept in a file so that a repeated evaluation asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import UserError


def request_key(endpoint: str, request: dict[str, Any]) -> str:
    """SHA-256 of the endpoint and everything sent to it (model, messages, settings), without the API key."""
    return hashlib.sha256(json.dumps({"endpoint": endpoint, **request}, sort_keys=True).encode()).hexdigest()


class JudgeCache:
    """Answers by request, in a JSON Lines file that is only ever appended to.

    A line is written in one go, so a killed run loses at most the answer in flight. Lines that cannot be read, such as
    a torn one, are skipped. If a request has several answers, the last one counts. Neither questions nor API keys are
    stored. Safe to share between threads.

    Args:
        folder: Where `answers.jsonl` is or will be; created if missing.

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
        self._answers = {row["key"]: row for row in map(_row, content.splitlines()) if row is not None}

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """The answer to a request, or None if it has not been asked."""
        with self._lock:
            return self._answers[key]["answer"] if key in self._answers else None

    def spent(self, key: str, work: str | None) -> dict[str, int] | None:
        """What the answer to a request cost, where a call of this name asked for it; None else."""
        with self._lock:
            row = self._answers.get(key, {})
        return row["spent"] if work is not None and row.get("work") == work else None

    def add(
        self, key: str, model: str, answer: str, spent: Mapping[str, int] | None = None, work: str | None = None
    ) -> None:
        """Store an answer; it is on disk when this returns.

        Args:
            key: The request's `request_key`.
            model: Who answered, for people who read the file.
            answer: The text of the answer.
            spent: What it cost: requests, and tokens.
            work: Names the call that asked.
        """
        row: dict[str, Any] = {"key": key, "model": model, "answer": answer}
        if work is not None:
            row |= {"work": work, "spent": dict(spent or {})}
        line = json.dumps(row).encode() + b"\n"
        with self._lock:
            with self.path.open("ab") as file:
                file.write(b"\n" + line if self._torn else line)
                file.flush()
                os.fsync(file.fileno())
            self._torn = False
            self._answers[key] = row


def _row(line: bytes) -> dict[str, Any] | None:
    """A line with a key and an answer; None if it has none."""
    try:
        row = json.loads(line)
        key, answer = row["key"], row["answer"]
    except (ValueError, KeyError, TypeError):
        return None
    return row if isinstance(key, str) and isinstance(answer, str) else None
