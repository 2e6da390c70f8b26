"""YAML as people mean it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import yaml

_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_MOST = 100_000
"""Values in a YAML once its aliases are written out: a few lines can stand for billions of them."""


class Loader(yaml.SafeLoader):
    """YAML 1.1 takes `1e-4` for a string, `no` for false, and a key twice; this loader mends all three."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; what is not of the kind that its tag names (`!!timestamp soon`) is refused where it stands."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, yaml.YAMLError):
                raise
            kind = node.tag.rpartition(":")[2]
            why = f": {error}" if isinstance(error, ValueError) else ""
            raise yaml.constructor.ConstructorError(
                None, None, f"not a value of kind {kind}{why}", node.start_mark
            ) from None

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """A scalar, which files can be named by and written with: YAML's escapes spell what neither can hold."""
        text = super().construct_scalar(node)
        if isinstance(text, str) and _UNWRITABLE.search(text):
            problem = "NUL or half a surrogate pair is no text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping, whose keys must differ."""
        if not isinstance(node, yaml.MappingNode):  # by its tag alone: `!!map [1]`
            raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, dict | list | set):
                problem = "a key must be a word, not a list or a mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                problem = f"the key {key!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9]*[eE][-+]?[0-9]+|\.[0-9]+[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


class NotYaml(ValueError):
    """A text is no YAML; the message says why."""

    def __init__(self, problem: str, where: str = "") -> None:
        super().__init__(problem)
        self.where = where
        """`:LINE:COLUMN`, where that is known."""


def read(text: str) -> Any:
    """What a YAML text says.

    Raises:
        NotYaml: It is none, or holds what cannot be read, such as a number of 5,000 digits or aliases without end.
    """
    try:
        return _written_out(yaml.load(text, Loader=Loader), itertools.count(1))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        words = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise NotYaml(" ".join(words.split()), where) from None
    except RecursionError:
        raise NotYaml("nested too deeply") from None
    except ValueError as error:  # of a date or a number
        raise NotYaml(str(error)) from None


def _written_out(value: Any, number: Iterator[int]) -> Any:
    """A value in which nothing is shared: an alias is a copy, so that changing one changes no other."""
    if next(number) > _MOST:
        raise NotYaml(f"more than {_MOST:,} values once its aliases are written out")
    if isinstance(value, dict):
        return {key: _written_out(item, number) for key, item in value.items()}
    return [_written_out(item, number) for item in value] if isinstance(value, list | tuple) else value


def parse_value(text: str) -> Any:
    """A value from the command line, read as YAML would read it."""
    try:
        return read(text)
    except NotYaml:
        return text
