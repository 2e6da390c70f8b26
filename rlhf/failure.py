"""Turns an unforeseen exception into one line, and writes its traceback to a file.

An exception of a library, or of the user's own code, is a `UserError` (exit code 2): a setting, a version or a machine
does not suit it. An exception of this package's code is a `Defect` (exit code 1).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import rlhf
from rlhf import processes
from rlhf.config.project import ProjectConfig
from rlhf.config.ranges import shown
from rlhf.errors import Defect, GateClosed, Incident, UserError
from rlhf.secrets import masked

_LONGEST = 400
"""Characters of a library's message that are shown."""
_OURS = "rlhf"
_FULL = re.compile(r"no space left on device|disk is full|disk quota exceeded", re.IGNORECASE)
_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


@contextlib.contextmanager
def explained(
    where: str,
    settings: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    passed: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Turn whatever is raised inside into a line that a user can act on.

    `UserError`, `GateClosed`, `Incident` and `Defect` are such lines already, and pass.

    Args:
        where: What was being done, such as `demo.yaml: stages.dpo`.
        settings: The settings for it, by name; the line names those that the exception's message mentions.
        folder: Where the traceback is written; None takes the folder for temporary files.
        passed: Further exceptions that pass.

    Raises:
        UserError: A library raised something, or the user's own code did.
        Defect: This package's own code raised something.
    """
    already_lines: tuple[type[BaseException], ...] = (UserError, GateClosed, Defect, Incident, *passed)
    name = _file_name(where)
    if folder is not None:
        (folder / f"{name}.txt").unlink(missing_ok=True)  # of an earlier attempt
    try:
        yield
    except already_lines:
        raise
    except Exception as error:
        file = _write_traceback(error, name, folder)
        raise _explanation(error, where, settings or {}, file) from error


@contextlib.contextmanager
def explained_stage(project: ProjectConfig, name: str, folder: Path | None = None) -> Iterator[None]:
    """Do as `explained` does for a stage of a project, with the settings of its YAML.

    Args:
        project: The project.
        name: The stage.
        folder: Where the traceback is written; None takes the folder for temporary files.

    Raises:
        UserError: A library raised something, or the user's own code did.
        Defect: This package's own code raised something.
    """
    section = f"stages.{name}" if project.has_stage(name) else name
    settings: dict[str, Any] = {}
    if project.has_stage(name):
        adapter = project.stage_model(name).adapter or {}
        settings = {**project.stage(name).trainer, **{f"adapter.{key}": value for key, value in adapter.items()}}
    with explained(f"{project.path}: {section}", settings, folder):
        yield


def ended_by(number: int, at: str = "") -> str:
    """What became of a process that a signal ended, behind the process's name.

    Args:
        number: The signal.
        at: Where it was, such as ` at step 3`.
    """
    if number == signal.SIGKILL:
        return f"was killed{at}; was there memory enough?"
    name = signal.Signals(number).name
    if number == signal.SIGABRT:
        return f"was aborted by a library{at} ({name}); the last lines that it wrote to stderr tell why"
    if number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        return f"crashed in a library{at} ({name}); the last lines that it wrote to stderr may tell why"
    return f"was ended{at} by {name}"


def _explanation(error: Exception, where: str, settings: Mapping[str, Any], file: str) -> UserError | Defect:
    message = _message(error)
    culprit = _culprit(error.__traceback__)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _MEMORY.search(message):
        return UserError(
            f"{where}: out of memory; lower per_device_train_batch_size (raise gradient_accumulation_steps), "
            f"max_length, or take a smaller model; {file}"
        )
    if _FULL.search(message) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{where}: the disk is full; make room, or keep fewer checkpoints (save_total_limit), and start it again; "
            f"{file}"
        )
    if isinstance(error, OSError) and error.errno is not None:
        what = f"{error.filename}: " if error.filename is not None else ""
        return UserError(f"{where}: {what}{(error.strerror or message).lower()}; {file}")
    if culprit == _OURS:
        return Defect(
            f"{where}: {type(error).__name__}: {message}; this is a defect of rlhf {rlhf.__version__}: please report it"
            f" ({file})"
        )
    named = _named(message, settings) or _named(_library_lines(error.__traceback__), settings)
    if len(named) == 1:
        where, advice = f"{where}.{named[0]}", f"set to {shown(settings[named[0]])}"
    elif named or settings:
        advice = f"it sets {', '.join(named or settings)}"
    else:
        advice = type(error).__name__
    return UserError(f"{where}: {culprit}: {message} ({advice}); {file}")


def _message(error: Exception) -> str:
    """The first paragraph of an exception's message as one line, cut if it is long."""
    line = " ".join(str(error).strip().split("\n\n")[0].split()) or type(error).__name__
    if isinstance(error, KeyError):
        line = f"KeyError: {line}"
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _named(text: str, settings: Mapping[str, Any]) -> list[str]:
    """The settings that a text mentions, by their names or by words that they are set to."""
    return [
        key
        for key, value in settings.items()
        if any(
            len(word) > 3 and re.search(rf"(?<!\w){re.escape(word)}", text, re.IGNORECASE)
            for word in (key.rpartition(".")[2], *(value if isinstance(value, list) else [value]))
            if isinstance(word, str)
        )
    ]


def _library_lines(trace: TracebackType | None) -> str:
    """The lines of the libraries' code that were running."""
    return "\n".join(frame.line or "" for frame in traceback.extract_tb(trace) if "-packages" in frame.filename)


def _culprit(trace: TracebackType | None) -> str:
    """Whose code raised an exception: the library or file of the innermost call outside Python's own modules."""
    culprit = _OURS
    for frame, _ in traceback.walk_tb(trace):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        file = frame.f_code.co_filename
        if package in sys.stdlib_module_names or file.startswith("<frozen"):
            continue
        installed = "site-packages" in file or "dist-packages" in file or not os.path.isabs(file)
        culprit = package if package == _OURS or installed else file
    return culprit


def _file_name(where: str) -> str:
    """Name of the traceback's file, without suffix; each process has its own."""
    rank = processes.rank()
    return re.sub(r"\W+", "-", where.rpartition(" ")[2]).strip("-") + "-traceback" + (f"-{rank}" if rank else "")


def _write_traceback(error: Exception, name: str, folder: Path | None) -> str:
    """Write the traceback; return a clause that says where."""
    text = masked("".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):
        if folder is not None and folder.is_dir():
            path = folder / f"{name}.txt"
            path.write_text(text, encoding="utf-8")
            return f"the traceback is in {path}"
    with contextlib.suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(prefix=f"rlhf-{name}-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return f"the traceback is in {temporary}"
    return "its traceback could not be written"
