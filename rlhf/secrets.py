"""Keeps secrets out of what is written and shown: keys and tokens of the environment, and logins in URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

_NAMES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a secret: a shorter value, such as `KEY=1`, would take letters out of every text."""
_SHAPES = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,})")
"""Tokens that are known by their form: of the hub, which a login keeps in a file, and of OpenAI."""
_LOGIN = re.compile(r"(?<=:/)(/?)[^/\s'\"]+@")
"""In a URL; as a path, it has lost one of its slashes."""
_HIDDEN = "…"
_told: set[str] = set()


def remember(secret: str) -> None:
    """Take a value for a secret from now on, whatever the variable is called that holds it; a short one is none."""
    if len(secret.strip()) >= _SHORTEST:
        _told.add(secret.strip())


def masked(text: str) -> str:
    """A text in which an ellipsis stands for each secret that this process knows, and for each login in a URL."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return _LOGIN.sub(rf"\1{_HIDDEN}@", _SHAPES.sub(_HIDDEN, text))


def holds_secret(text: str) -> bool:
    """Whether a text holds a secret that this process knows, or what looks like a token; no login in a URL is one."""
    return _SHAPES.search(text) is not None or any(secret in text for secret in _secrets())


def _secrets() -> Iterator[str]:
    yield from _told
    for name, value in os.environ.items():
        value = value.strip()
        if _NAMES.search(name) and len(value) >= _SHORTEST and not value.startswith(("/", "~", ".")):  # no path to one
            yield value
