"""The kinds of input, and how many of each there are in a hundred."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis.strategies import SearchStrategy

from tests.fuzz.configs import configs
from tests.fuzz.folders import models, runs
from tests.fuzz.functions import functions
from tests.fuzz.inputs import Input
from tests.fuzz.tables import tables


@dataclass(frozen=True)
class Kind:
    """A kind of input."""

    share: int
    """Of all inputs, in per cent."""
    inputs: Callable[[Path], SearchStrategy[Input]]
    """Makes the strategy; takes the world's folder, for inputs made from its files."""


KINDS = {
    "config": Kind(60, lambda world: configs()),
    "data": Kind(30, tables),
    "reward": Kind(2, lambda world: functions()),
    "model": Kind(4, models),
    "artefact": Kind(4, runs),
}
