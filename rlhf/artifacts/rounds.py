"""What a later round records of itself (`round.json`): what it starts from, what it leaves, and the votes it uses."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, cast

from rlhf.artifacts.json_files import read_object

ROUND = "round.json"
VOTES = "votes"
"""The folder of a round with the votes that it trains on, a JSONL file a set."""


class RoundRecord(TypedDict):
    """The fields of round.json."""

    round: int
    """2 or more."""
    start: str
    """The stage of the round before whose policy this one starts from."""
    leaves: str
    """The stage whose policy it leaves to the next."""
    votes: int
    """Votes of all earlier rounds, those that skip a comparison left out."""
    rows: dict[str, int]
    """Rows that these give to each set."""


def round_dir(run_dir: Path, number: int) -> Path:
    """The folder of a round of a run, of which the first is the run itself."""
    return run_dir if number == 1 else run_dir / f"round-{number}"


def run_name(run_dir: Path) -> str:
    """What a run is called: its folder's name, of a later round with that of the first before it."""
    folder = run_dir.resolve()
    return f"{folder.parent.name}/{folder.name}" if (folder / ROUND).is_file() else folder.name


def read_round(folder: Path) -> RoundRecord | None:
    """What a round recorded; None of the first round, and of one that has not begun.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / ROUND
    if not path.is_file():
        return None
    fields = {"round": int, "start": str, "leaves": str, "votes": int, "rows": dict}
    return cast(RoundRecord, read_object(path, fields, f"delete {folder} to begin the round again"))
