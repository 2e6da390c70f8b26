"""Votes as data sets: files of JSON lines, and folders that `datasets` loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.data.vote_rows import ROWS
from rlhf.data.votes import Vote, read_votes
from rlhf.errors import UserError, reason

_CARD = """---
configs:
{configs}---

# Votes of {name}

{mark}

| Set | Rows | What a row is |
|---|---|---|
{table}"""
_MARK = "What people said of replies, from the arena of [rlhf-pipeline](https://pypi.org/project/rlhf-pipeline/)."
"""By which the card of an earlier export is known."""
_README = "README.md"
_ROWS = {
    "preferences": "a prompt, the reply that more annotators preferred (`chosen`) and the other (`rejected`)",
    "demonstrations": "a prompt and what an annotator wrote should have been said",
    "feedback": "a prompt and a reply that an annotator judged good or bad by itself (`label`)",
}


def jsonl(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def export_run(run_dir: Path, folder: Path) -> dict[str, int]:
    """Write the votes of a run as data sets; see `export`.

    Raises:
        UserError: There are none.
    """
    votes = read_votes(run_dir)
    if not votes:
        raise UserError(f"{run_dir}: no votes yet: rlhf arena {run_dir}")
    return export(votes, folder, run_dir.resolve().name)


def export(votes: Sequence[Vote], folder: Path, name: str) -> dict[str, int]:
    """Write votes as data sets: of each set `SET.jsonl`, and `SET/` for `datasets.load_from_disk`.

    They are written beside the folder and put in its place once they are whole. What stood there is replaced only where
    it is an earlier export.

    The folder as a whole loads with `datasets.load_dataset(FOLDER, SET)`, and can be pushed as it is: its README.md
    says which file is which set. A set without rows is left out, with what an earlier export wrote of it.

    Args:
        votes: The votes.
        folder: Where they go.
        name: The run's, for the card.

    Returns:
        Rows by set.

    Raises:
        UserError: The folder holds something else, or cannot be written, or rows do not go into one table.
    """
    place = folder.resolve()
    made = place.with_name(f".{place.name}.partial-{os.getpid()}")
    try:
        _check_place(place)
        made.mkdir(parents=True)
        try:
            counts = _write(votes, made, name)
            _put_in_place(made, place)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: {(error.strerror or str(error)).lower()}") from None
    return counts


def _check_place(folder: Path) -> None:
    """Check that nothing in a folder is lost when an export takes its place.

    Raises:
        UserError: Something is there that no export wrote.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give another folder")
    own = {_README, *ROWS, *(f"{set_name}.jsonl" for set_name in ROWS)}
    found = sorted(child.name for child in folder.iterdir())
    if other := [name for name in found if name not in own]:
        raise UserError(f"{folder}: holds {other[0]}, which is of no export; give another folder")
    card = folder / _README
    if found and not (card.is_file() and _MARK in card.read_text(encoding="utf-8", errors="replace")):
        raise UserError(f"{folder}: holds {found[0]}, and no {_README} of an earlier export; give another folder")


def _write(votes: Sequence[Vote], folder: Path, name: str) -> dict[str, int]:
    from datasets import Dataset

    counts = {}
    for set_name, rows_of in ROWS.items():
        rows = _alike(rows_of(votes))
        counts[set_name] = len(rows)
        if rows:
            (folder / f"{set_name}.jsonl").write_text(jsonl(rows), encoding="utf-8")
            try:
                Dataset.from_list(rows).save_to_disk(folder / set_name)
            except (ValueError, TypeError) as error:  # of pyarrow: a column that is a number here and a text there
                raise UserError(f"{set_name}: rows do not go into one table: {reason(error)}") from None
    (folder / _README).write_text(_card(counts, name), encoding="utf-8")
    return counts


def _put_in_place(made: Path, folder: Path) -> None:
    """Move an export to where it belongs; what stood there comes back where that fails, and goes only afterwards."""
    before = made.with_name(f"{made.name}-before")
    if folder.exists():
        os.replace(folder, before)
    try:
        os.replace(made, folder)
    except OSError:
        if before.exists():
            os.replace(before, folder)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _alike(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one form: as conversations where any is one, and with the same columns."""
    texts = ("prompt", "chosen", "rejected", "completion")
    if any(isinstance(row["prompt"], list) for row in rows):
        rows = [
            {
                column: [{"role": "user" if column == "prompt" else "assistant", "content": value}]
                if column in texts and isinstance(value, str)
                else value
                for column, value in row.items()
            }
            for row in rows
        ]
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column) for column in columns} for row in rows]


def _card(counts: dict[str, int], name: str) -> str:
    configs = "".join(
        f"- config_name: {set_name}\n  data_files: {set_name}.jsonl\n" for set_name, count in counts.items() if count
    )
    table = "".join(f"| {set_name} | {count} | {_ROWS[set_name]} |\n" for set_name, count in counts.items())
    return _CARD.format(mark=_MARK, configs=configs, name=name, table=table)
