"""`source: votes:RUN`: what people said of a run's policies, as rows of a set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.config.sets import VOTES, SourceConfig
from rlhf.data.readers import Row
from rlhf.data.vote_rows import ROWS
from rlhf.data.votes import Vote, read_votes, votes_file
from rlhf.errors import UserError

FORMATS = {"preferences": "preference", "demonstrations": "prompt_completion", "feedback": "kto"}
"""Role -> the layout of its rows."""
_RUNS = Path("runs")
"""Where a run is looked for by its name."""


def is_votes(source: str) -> bool:
    """Whether a source is the votes of a run."""
    return source.startswith(VOTES)


def locate_run(source: str, base: Path) -> Path:
    """The folder of the run whose votes a source names.

    Args:
        source: `votes:` and a run's folder, or its name in `runs/`.
        base: Folder in which relative paths are looked up second.

    Raises:
        UserError: There is no such folder.
    """
    name = source.removeprefix(VOTES)
    given = Path(name).expanduser()
    for folder in (given, base / given, _RUNS / given, base / _RUNS / given):
        if name and folder.is_dir():
            return folder
    raise UserError(f"{source}: no such run; give its folder, such as {VOTES}runs/mine, or its name")


def read_vote_rows(source: SourceConfig, base: Path, role: str | None) -> Iterator[tuple[Row, str]]:
    """The votes of a run as rows of a set, with their origins (`votes:RUN#12`).

    Args:
        source: The run.
        base: Folder in which relative paths are looked up second.
        role: The set, by its key in `data:`; None for rows of no set.

    Raises:
        UserError: There is no such run, it has no votes, or none that gives rows of this set.
    """
    for number, row in enumerate(_rows(source, base, role), start=1):
        yield row, f"{source.source}#{number}"


def fingerprint_of_votes(source: SourceConfig, base: Path, role: str | None) -> dict[str, Any]:
    """What identifies the rows that votes give: their content, and not that of the file, which changes when read.

    Raises:
        UserError: As `read_vote_rows`.
    """
    digest = hashlib.sha256()
    for row in _rows(source, base, role):
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return {"votes": locate_run(source.source, base).resolve().name, "sha256": digest.hexdigest()}


def counted(votes: list[Vote]) -> str:
    """How many rows of which set votes give, as a sentence says it."""
    return ", ".join(f"{len(rows(votes))} {name}" for name, rows in ROWS.items())


def _rows(source: SourceConfig, base: Path, role: str | None) -> list[Row]:
    run_dir = locate_run(source.source, base)
    if source.split is not None:
        raise UserError(f"{source.source}: split {source.split!r} is asked for, and votes have none")
    if role not in ROWS:
        place = f"data.{role}" if role else "this set"
        raise UserError(f"{source.source}: votes give {', '.join(ROWS)}, and no rows of {place}")
    if not (run_dir / "project.json").is_file() and not votes_file(run_dir).is_file():
        raise UserError(f"{source.source}: {run_dir} is no run")
    if not votes_file(run_dir).is_file():
        raise UserError(f"{source.source}: nobody has voted there yet: rlhf arena {run_dir}")
    votes = read_votes(run_dir)
    rows = ROWS[role](votes)
    if not rows:
        raise UserError(f"{source.source}: its {len(votes)} votes give no {role} ({counted(votes)})")
    return rows
