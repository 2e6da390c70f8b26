"""A project's YAML with a reason behind each line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_WIDTH = 120
_COLUMN = 44
"""Where comments begin."""


@dataclass(frozen=True)
class Line:
    """A setting, or a section of settings, and why it is there."""

    key: str
    value: Any
    """What is set; a tuple of lines is a section."""
    why: str = ""

    @property
    def lines(self) -> tuple[Line, ...] | None:
        """The lines of a section; None for a setting."""
        return self.value if isinstance(self.value, tuple) else None


def section(key: str, lines: Sequence[Line], why: str = "") -> Line:
    """A section of settings."""
    return Line(key, tuple(lines), why)


def rendered(lines: Sequence[Line], header: Sequence[str]) -> str:
    """The text of a YAML.

    Args:
        lines: Its settings, in order.
        header: Sentences that stand above them, as comments.
    """
    text = [f"# {part}" for sentence in header for part in textwrap.wrap(_printable(sentence), _WIDTH - 2)]
    return "\n".join([*text, *_render(lines, 0)]) + "\n"


def _render(lines: Sequence[Line], depth: int) -> list[str]:
    """Lines of YAML; a section's stand two spaces further in."""
    text = []
    for line in lines:
        indent = "  " * depth
        if line.lines is None:
            value = _scalar(line.value)
            text += _commented(f"{indent}{_scalar(line.key)}: {value}", line.why)
        else:
            text += _commented(f"{indent}{_scalar(line.key)}:", line.why)
            text += _render(line.lines, depth + 1)
    return text


def _commented(setting: str, why: str) -> list[str]:
    """A setting with its reason behind it; a long reason goes on below, and that of a long setting above it."""
    if not why:
        return [setting]
    if len(setting) >= _COLUMN:
        indent = setting[: len(setting) - len(setting.lstrip())]
        return [*(f"{indent}# {part}" for part in textwrap.wrap(_printable(why), _WIDTH - len(indent) - 2)), setting]
    first, *rest = textwrap.wrap(_printable(why), _WIDTH - _COLUMN - 2, break_long_words=False)
    return [f"{setting:<{_COLUMN}}# {first}", *(f"{'':<{_COLUMN}}# {part}" for part in rest)]


def _printable(text: str) -> str:
    """A comment without what would end it: a file's name may hold a line break."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _scalar(value: Any) -> str:
    """A value on one line, as YAML 1.1 reads it again."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...").rstrip("\n")


class _Dumper(yaml.SafeDumper):
    """Writes what does not print, such as a line break, as an escape, so that each value keeps to its line."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')


_Dumper.add_representer(str, _text)
