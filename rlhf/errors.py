"""The one exception that a user sees as a line of text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 300
"""Characters kept of what a library says."""


class UserError(Exception):
    """A mistake in what the user gave us: config, data, model or folder.

    The message is one line that names the file, line, column or key concerned. The command line prints it without a
    traceback and exits with code 2; in Python it is an ordinary exception. What does not print, a line break or an
    escape sequence in a column's name say, stands in it as Python writes it.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message))


class Defect(Exception):
    """Our own code raised what it should not; the message is one line. The command line exits with code 1."""


class GateClosed(Exception):
    """A reward model did not pass its gate; the message says why. The command line exits with code 3."""


def unknown_name(name: str, known: Iterable[str]) -> str:
    """The words that follow an unknown name: the nearest known one, or all of them where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names[:12])}"


def reason(error: BaseException) -> str:
    """What a library's exception says, on one line: its first line, and the next where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    said = f"{type(error).__name__} {said}" if isinstance(error, KeyError) else said
    return said if len(said) <= _LONGEST else said[:_LONGEST] + " …"
