"""The sets of a project: which of them supplies a role, and its records, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from rlhf.config.project import ProjectConfig
from rlhf.config.sets import SUPPLIERS, DatasetConfig, SourceConfig
from rlhf.data.checks import fault
from rlhf.data.formats import find
from rlhf.data.inspector import Inspector
from rlhf.data.ledger import IDENTICAL, Ledger
from rlhf.data.records import ROLES, Record, Unusable, as_chat, as_role
from rlhf.data.sources import read_rows
from rlhf.data.vote_source import FORMATS, is_votes
from rlhf.errors import UserError


def source_set(project: ProjectConfig, role: str) -> str:
    """The set that supplies a role: its own, or the first substitute that the project has.

    Raises:
        UserError: The project has neither.
    """
    if (name := project.data.supplier(role)) is not None:
        return name
    _, *substitutes = SUPPLIERS.get(role, (role,))
    others = f" (or {', '.join(substitutes)})" if substitutes else ""
    raise UserError(f"{project.path}: data.{role}{others} is missing")


def dataset(project: ProjectConfig, role: str) -> DatasetConfig:
    """The configuration of a set.

    Raises:
        UserError: The project does not have it.
    """
    return getattr(project.data, source_set(project, role))


def always_trained(project: ProjectConfig) -> dict[str, list[SourceConfig]]:
    """The sources whose rows are all trained on, by the set that they are in; sets without one are left out."""
    found = {}
    for name in ROLES:
        given = getattr(project.data, name)
        if given is not None and (sources := [source for source in given.sources if source.all_trained]):
            found[name] = sources
    return found


def without_always_trained(project: ProjectConfig) -> ProjectConfig:
    """The project without those sources; a set that has no other is left out."""
    changes: dict[str, Any] = {}
    for name in always_trained(project):
        given = getattr(project.data, name)
        rest = tuple(source for source in given.sources if not source.all_trained)
        changes[name] = replace(given, sources=rest) if rest else None
    return replace(project, data=replace(project.data, **changes)) if changes else project


def records(
    project: ProjectConfig,
    role: str,
    ledger: Ledger,
    inspector: Inspector | None = None,
    wanted: Callable[[SourceConfig], bool] = bool,
) -> Iterator[tuple[Record, dict[str, Any], SourceConfig]]:
    """Faultless records of a set in the role's form, each with its row and its source.

    Args:
        project: The project.
        role: The set, by its key in `data:`.
        ledger: Counts the rows, and those dropped.
        inspector: Sees the records.
        wanted: Which of the set's sources are read.
    """
    name = source_set(project, role)
    for source in filter(wanted, dataset(project, role).sources):
        layout, given = None, source.format or (FORMATS.get(name) if is_votes(source.source) else None)
        for row, origin in read_rows(source, project.path.parent, name):
            ledger.leave_out(row, origin)
            layout = layout or find(given, row, origin)
            try:
                parsed = layout.records(row, origin)
            except Unusable as error:
                ledger.read += 1
                ledger.drop(error.reason, origin, row)
                continue
            ledger.read += len(parsed)
            for one in parsed:
                content = row if len(parsed) == 1 else asdict(one)  # not the whole row with each of its records
                try:
                    record = as_role(one, role)
                    record = as_chat(record) if source.chat else record
                    reason = fault(record)
                    if inspector is not None and reason in (None, IDENTICAL):
                        inspector.read(record)
                    if reason is not None:
                        raise Unusable(reason)
                except Unusable as error:
                    ledger.drop(error.reason, origin, content)
                    continue
                yield record, content, source
