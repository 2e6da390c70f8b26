"""What a stage can be exported as, one file each: adding a format means adding a file.

A format module defines `FORMATS`, a tuple of `Format`. Modules whose names start with an underscore are helpers.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from rlhf.errors import UserError, require, unknown_name
from rlhf.publish.build import Finished

Write = Callable[[PreTrainedModel, Finished, Path], Sequence[str]]
"""Writes a float model on the CPU, whose tokenizer is in the folder already; says, a sentence each, what to know."""


def fits_all(whole: Finished) -> None:
    """The check of a format that every model fits."""


@dataclass(frozen=True)
class Format:
    """A way to write a model, which transformers can read."""

    name: str
    """As `--format` names it."""
    what: str
    """What the weights are, in a sentence: `int8 weights`."""
    write: Write
    precision: str | None = None
    """What rounding may change, a key of the probe's tolerances; None for the type of the stage's weights."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """What `from_pretrained` takes besides the folder."""
    packages: tuple[str, ...] = ()
    """Packages that writing and reading it need, as they are imported."""
    check: Callable[[Finished], None] = fits_all
    """Raises UserError where the format does not fit a stage; nothing is loaded yet."""
    engine: str | None = None
    """What the file is for where that is not transformers, whose speed then says nothing about it."""


UNAVAILABLE = {
    "int4": "torchao packs 4-bit integers on an NVIDIA GPU only, and nothing here was tried on one; nf4 and gguf-q4_0 "
    "have 4 bits and run on a CPU, too",
}
"""Formats that users ask for and that are not offered, with the reason."""


@functools.cache
def formats() -> dict[str, Format]:
    """All formats by name."""
    modules = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    known = [each for name in modules for each in importlib.import_module(f"{__name__}.{name}").FORMATS]
    return {each.name: each for each in sorted(known, key=lambda each: (each.name != "merged", each.name))}


def find(name: str) -> Format:
    """The format of a name, whose packages are installed.

    Raises:
        UserError: There is no such format, or a package is missing.
    """
    if name in UNAVAILABLE:
        raise UserError(f"--format {name}: {UNAVAILABLE[name]}")
    if name not in formats():
        raise UserError(f"--format: unknown {name!r}; {unknown_name(name, formats())}")
    require("export", *formats()[name].packages)
    return formats()[name]
