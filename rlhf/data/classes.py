"""The classes of a labelled set: from their names in the rows to the numbered outputs of a classifier."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rlhf.config.project import ProjectConfig
from rlhf.data.records import Labelled
from rlhf.errors import UserError, unknown_name

_GAP = 1000
"""Class numbers up to this may be unused."""


def class_names(names: Collection[str]) -> list[str]:
    """The classes of a classifier, in the order of its outputs.

    Names that are all numbers are in the order of the numbers, and numbers from 0 up to the largest that no row has are
    filled in, so that class 7 is output 7. Other names are in alphabetical order.

    Args:
        names: The classes that rows have, each once.

    Returns:
        The names; the index of a name is its output.

    Raises:
        UserError: There are fewer than two, or numbers that far exceed how many there are.
    """
    check_classes(names)
    if not _numbered(names):
        return sorted(names)
    return [str(number) for number in range(1 + max(map(int, names)))]


def check_classes(names: Collection[str]) -> None:
    """Check that there are several classes, and that their numbers leave few outputs of a classifier unused.

    Args:
        names: The classes that rows have, each once.

    Raises:
        UserError: There are fewer than two, or numbers that far exceed how many there are.
    """
    if len(names) < 2:
        what = f"every row of data.demonstrations has label {min(names)}" if names else "no row has a label"
        raise UserError(f"{what}: there is nothing to tell apart")
    if _numbered(names) and (largest := max(map(int, names))) > max(_GAP, 10 * len(names)):
        raise UserError(
            f"data.demonstrations has {len(names)} classes, and labels up to {largest}: number the classes from 0 on"
        )


def _numbered(names: Collection[str]) -> bool:
    """Whether all names are whole numbers, each written as Python writes it (`7`, not `07`)."""
    return all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names)


def demonstrated_classes(project: ProjectConfig) -> set[str]:
    """The classes of `data.demonstrations`; none where it is missing or has no labels."""
    from rlhf.data.prepare import iter_records

    if project.data.demonstrations is None:
        return set()
    records = (record for record, _ in iter_records(project, "demonstrations"))
    return {name for record in records if isinstance(record, Labelled) for name in record.labels}


def check_known(label: Any, known: Collection[str], where: str) -> None:
    """Check that a row's label, or each of several, is a class of the model.

    Args:
        label: As prompts made of labelled rows carry it in the column `label`; None where a row has none.
        known: The model's classes.
        where: The row or the model, for the message.

    Raises:
        UserError: It is not.
    """
    for name in label if isinstance(label, list) else [] if label is None else [label]:
        if str(name) not in known:
            raise UserError(f"{where}: label {str(name)!r} is no class of the model; {unknown_name(str(name), known)}")
