"""Finds the code behind a reward function without importing it, so that planning a run executes none of it.

What the code reads when it runs, and modules whose names it only computes then, are not seen.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class _Module:
    name: str
    """Dotted; for a file outside any package, its file name."""
    path: Path
    package: str
    """What its relative imports are relative to."""

    @property
    def label(self) -> str:
        """`judge.py` or `package/__init__.py`: the same wherever the project is."""
        if self.name.endswith(".py"):
            return self.name
        inner = "/" + self.path.name if self.path.stem == "__init__" else self.path.suffix
        return self.name.replace(".", "/") + inner


def code_behind(target: str | Path) -> dict[str, dict[str, str | None]]:
    """The user's files that a module or file imports, directly or indirectly, and the installed packages they use.

    Args:
        target: A file, or the dotted name of a module.

    Returns:
        `files`: SHA-256 of each file; `packages`: version of each installed package, by its top-level name.
    """
    files: dict[str, str | None] = {}
    packages: dict[str, str | None] = {}
    queue: list[_Module] = []
    beside: list[str] = []  # a file may add its own folder to the path before it imports from there
    if isinstance(target, Path):
        queue.append(_Module(target.name, target, ""))
        beside.append(str(target.parent))
    else:
        queue += _modules(target, beside, packages)
    seen: set[Path] = set()
    while queue:
        module = queue.pop()
        if module.path in seen:
            continue
        seen.add(module.path)
        content = module.path.read_bytes()
        files[module.label] = hashlib.sha256(content).hexdigest()
        for name in _imported(content, module):
            queue += _modules(name, [*beside, str(module.path.parent)], packages)
    return {"files": dict(sorted(files.items())), "packages": dict(sorted(packages.items()))}


def _imported(content: bytes, module: _Module) -> Iterator[str]:
    """The dotted names that a file may import; in `from a import b`, b may be the module `a.b`."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled, or an error that loading it will report
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.package.split(".")
            parents = above[: len(above) - node.level + 1] if node.level else []
            source = ".".join(filter(None, [*parents, node.module]))
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _modules(name: str, beside: list[str], packages: dict[str, str | None]) -> Iterable[_Module]:
    """A user's module and the packages around it, which run too; of installed packages only the version is noted."""
    top, *inner = name.split(".")
    if not top or top in sys.stdlib_module_names:
        return
    spec = _top_level(top, beside)
    if spec is not None and _is_installed(spec):
        packages[top] = _version(top)
        return
    dotted = top
    while spec is not None:
        locations = spec.submodule_search_locations
        if spec.origin and spec.has_location:
            yield _Module(dotted, Path(spec.origin), dotted if locations is not None else dotted.rpartition(".")[0])
        if not inner or locations is None:
            return
        name = inner.pop(0)
        dotted = f"{dotted}.{name}"
        spec = PathFinder.find_spec(name, list(locations))  # given a dotted name it would import the parent


def _top_level(name: str, beside: list[str]) -> ModuleSpec | None:
    try:
        spec = importlib.util.find_spec(name)  # imports nothing, as the name has no dot
    except ValueError:
        spec = None
    return spec or PathFinder.find_spec(name, beside)


def _is_installed(spec: ModuleSpec) -> bool:
    places = [spec.origin or "", *(spec.submodule_search_locations or ())]
    return any(part in ("site-packages", "dist-packages") for place in places for part in Path(place).parts)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = _distributions().get(package)
        return importlib.metadata.version(names[0]) if names else None


@functools.cache
def _distributions() -> Any:
    return importlib.metadata.packages_distributions()
