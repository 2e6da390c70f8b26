"""Tables of the fields of dataclasses and TypedDicts, read from the source of the package without importing it."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
from collections.abc import Callable
from pathlib import Path

import griffe

from rlhf.config import ranges

ROOT = Path(__file__).parents[2]
_WORDS = {
    "str": "text", "int": "whole number", "float": "number", "bool": "`true` or `false`", "None": "`null`",
    "Any": "anything", "Path": "path",
}  # fmt: skip
"""How the tables call a type."""

Link = Callable[[griffe.Class], str]
"""The link of a class that has a table of its own."""


@functools.cache
def package() -> griffe.Module:
    """The package, parsed."""
    loaded = griffe.load("rlhf", search_paths=[str(ROOT)], allow_inspection=False)
    assert isinstance(loaded, griffe.Module)
    return loaded


def class_of(path: str) -> griffe.Class:
    """A class by its importable name, `rlhf.config.project.ModelConfig`."""
    found = package()[path.removeprefix("rlhf.")]
    assert isinstance(found, griffe.Class)
    return found


def fields_of(owner: griffe.Class) -> list[griffe.Attribute]:
    """The fields of a class, without what only the package sets."""
    return [
        attribute
        for attribute in owner.attributes.values()
        if attribute.annotation is not None
        and "property" not in attribute.labels
        and "; set by `" not in _said(attribute)
    ]


def _said(thing: griffe.Object) -> str:
    return " ".join(thing.docstring.value.split()) if thing.docstring is not None else ""


def sentence(thing: griffe.Object) -> str:
    """The first sentence of a docstring."""
    return _said(thing).partition(". ")[0].rstrip(".") + "."


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def settings_table(owner: griffe.Class, link: Link, limits: Callable[[str], str] = lambda name: "") -> str:
    """Name, type, default and docstring of every field of a dataclass.

    Args:
        owner: The class.
        link: Where the tables of other classes are.
        limits: What a field takes besides its type says, by name.
    """
    rows = []
    for field in fields_of(owner):
        takes = with_limits(type_text(field.annotation, link), limits(field.name))
        rows.append([f"`{field.name}`", takes, default_text(field), _said(field)])
    return table(["Setting", "Takes", "Default", "What it does"], rows)


def contents_table(owner: griffe.Class, link: Link) -> str:
    """Name, type and docstring of every field of a TypedDict."""
    rows = [[f"`{field.name}`", type_text(field.annotation, link), _said(field)] for field in fields_of(owner)]
    return table(["Field", "Type", "What it says"], rows)


def classes_in(annotation: str | griffe.Expr | None) -> list[griffe.Class]:
    """The classes with fields that a type names, of the package."""
    return [thing for _, thing in _named(annotation) if isinstance(thing, griffe.Class) and fields_of(thing)]


def _named(annotation: str | griffe.Expr | None) -> list[tuple[griffe.ExprName, griffe.Object]]:
    """What a type names in the package, by the name."""
    found = []
    for name in annotation.iterate(flat=True) if isinstance(annotation, griffe.Expr) else ():
        if isinstance(name, griffe.ExprName) and name.canonical_path.startswith("rlhf."):
            with contextlib.suppress(KeyError, griffe.AliasResolutionError):
                thing = package()[name.canonical_path.removeprefix("rlhf.")]
                found.append((name, thing.final_target if isinstance(thing, griffe.Alias) else thing))
    return found


def default_text(field: griffe.Attribute) -> str:
    """The default as YAML writes it; `required` where there is none, nothing for a section of its own."""
    if field.value is None:
        return "required"
    node = ast.parse(str(field.value), mode="eval").body
    if isinstance(node, ast.Call):
        (factory,) = [word.value for word in node.keywords if word.arg == "default_factory"] or [None]
        if isinstance(factory, ast.Lambda):
            node = factory.body
        elif isinstance(factory, ast.Name):
            return {"dict": "`{}`", "list": "`[]`"}.get(factory.id, "")
    return f"`{yaml_text(ast.unparse(node))}`"


def yaml_text(value: str) -> str:
    """A Python literal as YAML would have it on one line."""
    try:
        given = ast.literal_eval(value)
    except ValueError:
        return value
    words = {None: "null", True: "true", False: "false"}
    if given is None or isinstance(given, bool):
        return words[given]
    if isinstance(given, dict):
        return "{" + ", ".join(f"{key}: {yaml_text(repr(each))}" for key, each in given.items()) + "}"
    if isinstance(given, list | tuple):
        return "[" + ", ".join(yaml_text(repr(each)) for each in given) + "]"
    return str(given)


def type_text(annotation: str | griffe.Expr | None, link: Link) -> str:
    """A type in words: aliases of numbers with their interval, choices as the words themselves."""
    return _Words(annotation, link).of(ast.parse(str(annotation).strip("\"'"), mode="eval").body)


class _Words:
    """The words for a type and its parts."""

    def __init__(self, annotation: str | griffe.Expr | None, link: Link) -> None:
        named = _named(annotation)
        self.links = {owner.name: link(owner) for owner in classes_in(annotation)}
        self.aliases: dict[str, griffe.Expr] = {}
        """Constants that are types, such as `Share = Annotated[float, …]`."""
        self.scope: dict[str, object] = {}
        """What the bounds of intervals are named by."""
        for name, thing in named:
            value = getattr(thing, "value", None)
            if isinstance(value, griffe.ExprSubscript):
                self.aliases[name.name] = value
                named += _named(value)  # is gone through, too
            elif thing.module.path.startswith("rlhf.config."):
                self.scope |= vars(importlib.import_module(thing.module.path))

    def of(self, node: ast.expr) -> str:
        """The words for a part."""
        if isinstance(node, ast.BinOp):
            return f"{self.of(node.left)} or {self.of(node.right)}"
        if isinstance(node, ast.Constant):
            return "`null`" if node.value is None else self.of(ast.parse(str(node.value), mode="eval").body)
        if isinstance(node, ast.Subscript):
            return self._subscript(ast.unparse(node.value), node.slice)
        name = ast.unparse(node)
        if name in self.aliases:
            return self.of(ast.parse(str(self.aliases[name]), mode="eval").body)
        return self.links.get(name) or _WORDS.get(name, f"`{name}`")

    def _subscript(self, outer: str, inner: ast.expr) -> str:
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if outer == "Literal":
            return " or ".join(f"`{part.value}`" for part in parts if isinstance(part, ast.Constant))
        if outer == "Annotated":
            bounds = [part.args[0] for part in parts[1:] if isinstance(part, ast.Call) and part.args]
            within = [f" in {interval_text(eval(ast.unparse(bound), self.scope))}" for bound in bounds]
            return self.of(parts[0]) + "".join(within)
        if outer in ("dict", "Mapping"):
            values = self.of(parts[-1])
            return "mapping" if values == "anything" else f"mapping of names to {values}"
        return f"list of {self.of(parts[0])}"


def with_limits(takes: str, limits: str) -> str:
    """A type with the interval of its numbers, or with the words that it takes."""
    if limits.startswith("`"):
        return limits + (" or `null`" if takes.endswith("`null`") else "")
    return f"{takes}, {limits}" if limits else takes


def interval_text(interval: str | ranges.Interval) -> str:
    """An interval as in mathematics."""
    if isinstance(interval, str):
        interval = ranges.Interval.of(interval)
    low, high = (f"{bound:.10g}".replace("inf", "∞") for bound in (interval.low, interval.high))
    also = "" if interval.also is None else f", or {interval.also:g}"
    return f"{'(' if interval.above else '['}{low}, {high}{')' if interval.below else ']'}{also}"
