"""Loads reward functions, the user's and this project's own, by module or by file."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, Sized
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf import interrupts
from rlhf.artifacts.hashing import sha256_file
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError, unknown_name
from rlhf.rewards import RewardFunction, scores_rows
from rlhf.rewards.allowed import check_module, code_file
from rlhf.rewards.sources import code_behind

BUILT_IN = "rlhf.rewards."
"""The package of this project's own reward functions."""
_LONGEST = 300
"""Characters of an exception's message that are shown."""
LARGEST = 1e15
"""Largest absolute score: sums of squares of larger ones overflow in float32."""


def load_function(spec: str, project: ProjectConfig, arguments: Mapping[str, Any] | None = None) -> RewardFunction:
    """Load `package.module:function` or `path/to/file.py:function`.

    Args:
        spec: Where it is.
        project: The project, whose folder resolves paths.
        arguments: Arguments to call it with, besides prompts, completions and the data's columns. A column of the same
            name does not replace them. A parameter annotated `Path` gets a path that the project's folder resolves.

    Raises:
        UserError: The file, module or function does not exist, its code lies neither in the project's folder nor in an
            installed package, importing it fails, or it does not take these arguments.
    """
    target, separator, name = spec.rpartition(":")
    if not separator:
        raise UserError(f"rewards: {spec!r}: expected package.module:function or path/to/file.py:function")
    module = _module_from_file(code_file(target, project)) if target.endswith(".py") else _module(target, project)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"rewards: {target} has no function {name!r}; {unknown_name(name, known)}")
    bound = _bound(function, spec, dict(arguments or {}))
    bound |= {key: project.resolve(str(bound[key])) for key in _paths(function) if bound.get(key) is not None}
    scored: Any = functools.partial(_checked, function, spec, bound)
    scored.rowwise = scores_rows(function)
    if target.startswith(BUILT_IN):
        scored([], [])  # a broken pattern or a missing package shows now, not after an hour of training
    return scored  # type: ignore[no-any-return]


def _bound(function: Callable[..., Any], spec: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a function is always called with, checked against its signature.

    All options of a built-in function are bound, so that a column that happens to have an option's name cannot set it.
    """
    signature = inspect.signature(function)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    options = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.kind in by_name and name not in ("prompts", "completions")
    }
    for name in arguments:
        if name not in options:
            hint = unknown_name(name, options) if options else "it has none"
            raise UserError(f"rewards: {spec} has no argument {name!r}; {hint}")
    try:
        signature.bind(prompts=[], completions=[], **arguments)
    except TypeError as error:
        raise UserError(f"rewards: {spec} cannot be called as f(prompts, completions, **columns): {error}") from None
    if spec.startswith(BUILT_IN):
        return {**options, **arguments}
    return arguments


def _paths(function: Callable[..., Any]) -> list[str]:
    """The parameters that are annotated `Path`."""
    kinds = (Path, Path | None, "Path", "Path | None")
    return [name for name, parameter in inspect.signature(function).parameters.items() if parameter.annotation in kinds]


def argument_files(arguments: Mapping[str, Any], project: ProjectConfig) -> dict[str, str]:
    """SHA-256 of each file that an argument names, by the argument's name."""
    hashes = {}
    for name, value in arguments.items():
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # a text that cannot be a path
            if isinstance(value, str) and (path := project.resolve(value)).is_file():
                hashes[name] = sha256_file(path)
    return hashes


def function_fingerprint(spec: str, project: ProjectConfig) -> dict[str, Any]:
    """What identifies a reward function, found without importing it: its name, the user's code behind it, its packages.

    The code of built-in functions needs no digest: it changes with the version of this package.

    Raises:
        UserError: The code lies neither in the project's folder nor in an installed package, or there is no such file.
    """
    target, _, name = spec.rpartition(":")
    if target.startswith(BUILT_IN):
        return {"function": name, "module": target}
    if target.endswith(".py"):
        return {"function": name, "module": None, **code_behind(code_file(target, project))}
    check_module(target, project)
    return {"function": name, "module": target, **code_behind(target)}


def _checked(
    function: RewardFunction,
    spec: str,
    arguments: dict[str, Any],
    /,  # columns may have these names
    prompts: Any,
    completions: Any,
    **columns: Any,
) -> list[float | None]:
    """Call a reward function and check that it returns a finite number or None for each completion.

    Raises:
        UserError: It fails or returns something else; the message names the function.
    """
    with _told(f"rewards: {spec} failed"):
        # a copy, as other rewards read the same objects
        own = copy.deepcopy({**columns, "prompts": prompts, "completions": completions})
        scores = function(**{**own, **arguments})
        if isinstance(scores, str | bytes | Mapping | Set) or not isinstance(scores, Iterable):
            raise UserError(f"returned a {type(scores).__name__}; expected a list with one score a completion")
        scores = list(scores) if isinstance(scores, Sized) else list(itertools.islice(scores, len(completions) + 1))
        values = [None if score is None else _number(score) for score in scores]
    if len(scores) != len(completions):
        raise UserError(f"rewards: {spec} returned {len(scores)} scores for {len(completions)} completions")
    for value in values:
        if value is not None and not math.isfinite(value):
            raise UserError(f"rewards: {spec} returned a score that is not finite; None means that there is none")
        if value is not None and abs(value) > LARGEST:
            raise UserError(f"rewards: {spec} returned a score of {value:g}, beyond {LARGEST:g}; scale it down")
    return values


def _number(score: Any) -> float:
    """A score as a float, from a number of Python or NumPy or a tensor with one element.

    Raises:
        UserError: It is something else; text is refused even if it looks like a number.
    """
    if isinstance(score, str | bytes):
        raise UserError(f"returned a score that is text, {str(score)[:20]!r}; expected a number or None")
    try:
        return float(score)
    except OverflowError:
        raise UserError(f"returned a score beyond {LARGEST:g}; scale it down") from None
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"returned a score that is a {type(score).__name__}; expected a number or None") from None


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a UserError, including `sys.exit` and a KeyboardInterrupt of its own.

    Whether a signal came tells Ctrl-C apart from these. Ctrl-C ends the run even if that code catches everything.
    """
    with _surroundings(), interrupts.listening():
        try:
            yield
        except UserError as error:
            raise UserError(f"{what.removesuffix(' failed')}: {error}") from None
        except BaseException as error:
            interrupts.raise_if_asked()
            raise UserError(f"{what}: {type(error).__name__}{_detail(error)}") from error
        interrupts.raise_if_asked()


def _detail(error: BaseException) -> str:
    try:
        lines = str(error).splitlines()
    except Exception:  # of the user's own class, it may fail as anything of theirs
        return ""
    return f": {lines[0][:_LONGEST]}" if lines else ""


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """Put back what else reads: the current folder, in which files are found, and where lines are said."""
    folder, streams, copies = os.getcwd(), {1: sys.stdout, 2: sys.stderr}, {}
    for number in streams:
        with contextlib.suppress(OSError):  # it was closed before
            copies[number] = os.dup(number)
    try:
        yield
    finally:
        os.chdir(folder)
        for number, copy in copies.items():
            os.dup2(copy, number)
            os.close(copy)
        sys.stdout, sys.stderr = (
            os.fdopen(number, "w", closefd=False) if stream and stream.closed else stream
            for number, stream in streams.items()
        )


def _module_from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _told(f"rewards: {path} cannot be imported"):
        spec.loader.exec_module(module)
    return module


def _module(name: str, project: ProjectConfig) -> ModuleType:
    check_module(name, project)
    with _told(f"rewards: module {name!r} cannot be imported"):
        return importlib.import_module(name)
