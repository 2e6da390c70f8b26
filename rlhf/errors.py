"""Exceptions that the command line turns into one line and an exit code."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable

from rlhf.secrets import masked

_LONGEST = 300
"""Most characters shown of a library's message."""
_LINE = 1200
"""Most characters of a line, roughly."""


class UserError(Exception):
    """A mistake in what the user gave us: config, data, model or folder.

    The message is one line that names the file, line, column or key concerned. The command line prints it without a
    traceback and exits with code 2; in Python it is an ordinary exception. Characters that do not print, such as a line
    break in a column's name, are escaped as in Python source, and secrets are left out. The middle of a line that is
    very long, as it is where it repeats a value of thousands of characters, is left out.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in masked(message))
        super().__init__(line if len(line) <= _LINE else f"{line[: _LINE - _LINE // 4]} … {line[-_LINE // 4 :]}")


class SamplerFailed(UserError):
    """A sampler cannot go on. Every process that samples raises it, so that all can write a checkpoint first."""


class Defect(Exception):
    """A bug of this package; the message is one line without secrets. The command line exits with code 1."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class GateClosed(Exception):
    """A reward model did not pass its gate; the message says why. The command line exits with code 3."""

    exit_code = 3


class Incident(Exception):
    """A loss or a gradient was not finite; the message says where. The command line exits with code 4."""

    exit_code = 4


class RowsToCome(Exception):
    """The rows that a stage trains on do not exist yet, since another stage will make them."""


def unknown_name(name: str, known: Iterable[str]) -> str:
    """The hint after an unknown name: the nearest known name, or the known names if none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names[:12])}"


def reason(error: BaseException) -> str:
    """A library's message on one line: its first line, and the second if the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    message = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    message = f"{type(error).__name__} {message}" if isinstance(error, KeyError) else message
    return message if len(message) <= _LONGEST else message[:_LONGEST] + " …"


def require(extra: str, *packages: str) -> None:
    """Check that optional packages are installed, before anything that takes long.

    Args:
        extra: The extra of this package that brings them.
        packages: Their names, as they are imported.

    Raises:
        UserError: One is not; the line names the command that installs it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise not_installed(package, extra)


def not_installed(package: str, extra: str) -> UserError:
    """What to raise where an optional package is missing: the package, and the extra of this one that brings it."""
    return UserError(f"the package {package} is not installed: pip install {package} (or rlhf-pipeline[{extra}])")
