"""From a project's set to what a stage trains on: rows -> format -> role -> checks -> split -> encoded rows on disk.

Rows pass through one at a time; memory holds sixteen bytes for each, to find duplicates. Everything is decided by the
content of a row, the project's seed and its `holdout`, so that two stages, or two processes, decide alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf import __version__
from rlhf.config import DatasetConfig, ProjectConfig
from rlhf.data.checks import DROPPED_FILE, DUPLICATE, HELD_OUT, LEDGER_FILE, SAMPLED_OUT, Ledger, fault, row_key
from rlhf.data.formats import find
from rlhf.data.records import Encoded, Prompt, Record, Unusable, as_role
from rlhf.data.sources import fingerprint, read_rows
from rlhf.data.splits import Side, canonical, contexts, copies, side
from rlhf.errors import UserError

if TYPE_CHECKING:
    import datasets

_SIDES: tuple[Side, Side] = ("train", "eval")
_KEY_FILE = "prepared.json"
_BATCH = 1000
_T = TypeVar("_T")
_SERVED_BY = {
    "prompts": ("prompts", "rollouts", "preferences", "demonstrations"),
    "rollouts": ("rollouts", "preferences", "demonstrations"),
}
"""Roles that need prompts alone, and the sets that can give them."""


@dataclass(frozen=True)
class Prepared:
    """What a stage trains on."""

    train: datasets.Dataset
    """Encoded rows, memory-mapped; with `extra` (JSON of the row's other columns) where asked for."""
    eval: datasets.Dataset
    """The same of the held-out rows; may be empty."""
    ledger: Ledger
    """What became of every row."""


@dataclass(frozen=True, slots=True)
class _Sorted:
    """A row that passed the checks, on its side of the split."""

    record: Record
    row: dict[str, Any]
    side: Side
    copies: int


def prepare(
    project: ProjectConfig,
    role: str,
    encode: Callable[[Any], Encoded],
    directory: Path,
    keep_columns: bool = False,
    key: str | None = None,
) -> Prepared:
    """Prepare a set for a stage, or reuse what an identical earlier call prepared in this folder.

    Args:
        project: The project; `project.data` has the sets.
        role: demonstrations, preferences or prompts.
        encode: Record to columns; raises Unusable for rows that cannot be used. Its columns keep their names and types.
        directory: Gets `train/`, `eval/`, `ledger.json` and `dropped.jsonl`, all complete or none.
        keep_columns: Add the column `extra`, the row's other columns as a JSON object.
        key: What identifies `encode` (tokenizer, limits); with it, an earlier preparation of the same data is reused.

    Raises:
        UserError: The set is missing or malformed, or nothing is left to train on.
    """
    identity = _identity(project, role, keep_columns, key) if key is not None else None
    key_file = directory / _KEY_FILE
    if identity is not None and _read_key(key_file) == identity:
        return load_prepared(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name in (
        _KEY_FILE,
        LEDGER_FILE,
        DROPPED_FILE,
    ):  # what is there no longer holds, and must not be taken for whole
        (directory / name).unlink(missing_ok=True)
    files = {name: _ArrowFile(directory / name / "data.arrow") for name in _SIDES}
    try:
        with Ledger(role, directory) as ledger:
            for item in _sorted_rows(project, role, ledger):
                _encode(item, encode, keep_columns, files, ledger)
            _something_left(project, role, ledger)
            schema = files["train"].flush() or files["eval"].flush()
            for file in files.values():
                file.finish(schema)
    except BaseException:
        for file in files.values():
            file.discard()
        with contextlib.suppress(OSError):
            directory.rmdir()  # if nothing else is in it
        raise
    key_file.write_text(json.dumps({"key": identity}), encoding="utf-8")
    print(ledger.line(), file=sys.stderr)
    return load_prepared(directory)


def load_prepared(directory: Path) -> Prepared:
    """What `prepare` left in a folder.

    Raises:
        UserError: It left nothing there.
    """
    from datasets import Dataset

    paths = [directory / name / "data.arrow" for name in _SIDES]
    for path in (*paths, directory / LEDGER_FILE, directory / DROPPED_FILE):
        if not path.is_file():
            raise UserError(f"{directory}: no prepared data here ({path.relative_to(directory)} is missing)")
    train, held_out = (Dataset.from_file(str(path)) for path in paths)
    return Prepared(train, held_out, Ledger.load(directory))


def iter_records(project: ProjectConfig, role: str, ledger: Ledger | None = None) -> Iterator[tuple[Record, Side]]:
    """Records of a set that passed the checks, in the role's form, each once with its side; no tokenizer needed.

    Args:
        project: The project.
        role: demonstrations, preferences or prompts.
        ledger: Counts what became of the rows.
    """
    ledger = ledger or Ledger(role)
    for item in _sorted_rows(project, role, ledger):
        _count_used(item, ledger)
        yield item.record, item.side


def evaluation_prompts(project: ProjectConfig, limit: int, ledger: Ledger | None = None) -> list[Prompt]:
    """Prompts that no stage trained on, each once: those of `data.prompts`, else held-out ones of another set.

    Args:
        project: The project; without `data.prompts`, another of its sets is read.
        limit: Most prompts wanted; of more, a fixed choice is taken that does not depend on their order.
        ledger: Counts what became of the rows read.

    Returns:
        The prompts in the order they stand in their set.

    Raises:
        UserError: There is none.
    """
    role = source_set(project, "prompts")
    seen: set[bytes] = set()
    chosen: list[tuple[int, int, Prompt]] = []  # a heap whose smallest entry is the largest hash: the next to go
    for number, (record, where) in enumerate(iter_records(project, role, ledger)):
        digest = _prompt_key(contexts(record)[0])
        if where == "train" or digest in seen:
            continue
        seen.add(digest)
        prompt = as_role(record, "prompts")
        assert isinstance(prompt, Prompt)
        entry = (-int.from_bytes(digest, "big"), number, prompt)
        if len(chosen) < limit:
            heapq.heappush(chosen, entry)
        else:
            heapq.heappushpop(chosen, entry)
    if not chosen:
        raise UserError(
            f"{project.path}: no prompts to evaluate on: data.{role} holds none out (holdout {project.holdout}); "
            "give data.prompts or a larger holdout"
        )
    return [prompt for _, _, prompt in sorted(chosen, key=lambda entry: entry[1])]


def source_set(project: ProjectConfig, role: str) -> str:
    """The set that serves a role: its own, or the first that the project has of those that stand in for it.

    Raises:
        UserError: The project has none of them.
    """
    for name in (candidates := _SERVED_BY.get(role, (role,))):
        if getattr(project.data, name) is not None:
            return name
    others = f" (or {', '.join(candidates[1:])})" if len(candidates) > 1 else ""
    raise UserError(f"{project.path}: data.{role}{others} is missing")


def fingerprints(project: ProjectConfig, role: str) -> dict[str, Any]:
    """What identifies the rows of a set and how they are split, without reading a row; equal means equal rows.

    Of a role whose set the project does not have, the set that serves it instead.
    """
    role = source_set(project, role)
    base = project.path.parent
    found: dict[str, Any] = {"sources": [fingerprint(source, base) for source in dataset(project, role).sources]}
    if role != "prompts":
        found.update(holdout=project.holdout, seed=project.seed)
        if project.data.prompts is not None:
            found["held_out_prompts"] = [fingerprint(source, base) for source in project.data.prompts.sources]
    return found


def dataset(project: ProjectConfig, role: str) -> DatasetConfig:
    """The configuration of a set.

    Raises:
        UserError: The project does not have it.
    """
    return getattr(project.data, source_set(project, role))


def _sorted_rows(project: ProjectConfig, role: str, ledger: Ledger) -> Iterator[_Sorted]:
    """Rows of a set that passed the checks; the others are dropped in the ledger."""
    held_out = _held_out_prompts(project) if role != "prompts" else set()
    seen: set[bytes] = set()
    for record, row, weight in _progress(_records(project, role, ledger), role):
        digest = row_key(record)
        if digest in seen:
            ledger.drop(DUPLICATE, record.origin, row)
            continue
        seen.add(digest)
        prompts = contexts(record)
        where = "eval" if role == "prompts" else side(prompts[0], project.holdout, project.seed)
        if where == "eval":
            ledger.held_out += 1
            yield _Sorted(record, row, "eval", 1)
        elif held_out and any(_prompt_key(prompt) in held_out for prompt in prompts):
            ledger.held_out += 1
            ledger.drop(HELD_OUT, record.origin, row)
        elif times := copies(digest, weight, project.seed):
            yield _Sorted(record, row, "train", times)
        else:
            ledger.drop(SAMPLED_OUT, record.origin, row)


def _records(project: ProjectConfig, role: str, ledger: Ledger) -> Iterator[tuple[Record, dict[str, Any], float]]:
    """Records of a set in the role's form, without a fault; with the row and the weight of its source."""
    for source in dataset(project, role).sources:
        layout = None
        for row, origin in read_rows(source, project.path.parent):
            ledger.read += 1
            layout = layout or find(source.format, row, origin)
            try:
                record = as_role(layout.parse(row, origin), role)
                if reason := fault(record):
                    raise Unusable(reason)
            except Unusable as error:
                ledger.drop(error.reason, origin, row)
                continue
            yield record, row, source.weight


def _held_out_prompts(project: ProjectConfig) -> set[bytes]:
    """Keys of the prompts of `data.prompts`, which nothing may train on."""
    if project.data.prompts is None:
        return set()
    records = _records(project, "prompts", Ledger("prompts"))
    return {_prompt_key(contexts(record)[0]) for record, _, _ in records}


def _prompt_key(prompt: Any) -> bytes:
    return hashlib.blake2b(canonical(prompt).encode(), digest_size=16).digest()


def _count_used(item: _Sorted, ledger: Ledger) -> None:
    if item.side == "train":
        ledger.trained += 1
        ledger.repeated += item.copies - 1
    else:
        ledger.evaluated += 1


def _encode(
    item: _Sorted,
    encode: Callable[[Any], Encoded],
    keep_columns: bool,
    files: dict[Side, _ArrowFile],
    ledger: Ledger,
) -> None:
    try:
        encoded = encode(item.record)
    except Unusable as error:
        ledger.drop(error.reason, item.record.origin, item.row)
        return
    _count_used(item, ledger)
    ledger.truncated += encoded.truncated
    ledger.eos_lost += encoded.eos_lost
    ledger.prompt_trimmed += encoded.prompt_trimmed
    columns = encoded.columns
    if keep_columns:
        columns = {**columns, "extra": json.dumps(item.record.extra, default=str)}
    for _ in range(item.copies):
        files[item.side].add(columns)


def _something_left(project: ProjectConfig, role: str, ledger: Ledger) -> None:
    """Refuse a set without a row to train on (or, of prompts, to reply to), and say what became of its rows."""
    if ledger.trained or (role == "prompts" and ledger.evaluated):
        return
    reasons = [f"{count} × {reason} (first: {ledger.first[reason]})" for reason, count in ledger.dropped.most_common(3)]
    if ledger.evaluated:
        reasons.insert(0, f"{ledger.evaluated} held out (holdout {project.holdout})")
        raise UserError(f"no row of data.{role} is left to train on: {', '.join(reasons)}")
    raise UserError(f"every row of data.{role} was dropped: {', '.join(reasons)}")


def _identity(project: ProjectConfig, role: str, keep_columns: bool, key: str) -> str:
    parts = [__version__, fingerprints(project, role), role, keep_columns, key]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_key(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _progress(rows: Iterator[_T], role: str) -> Iterator[_T]:
    """A progress bar on a terminal, once it takes longer than two seconds."""
    from tqdm import tqdm

    yield from tqdm(rows, desc=role, unit=" rows", delay=2, disable=None, leave=False)


class _ArrowFile:
    """Rows to an Arrow stream that `datasets` maps into memory, a batch at a time; the first batch sets the types."""

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, path.with_name(path.name + ".partial")
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None
        self._schema: Any = None

    def add(self, columns: dict[str, Any]) -> None:
        """Append a row."""
        self._rows.append(columns)
        if len(self._rows) >= _BATCH:
            self.flush()

    def flush(self) -> Any:
        """Write the rows that are waiting; returns the schema, None if there never was a row."""
        import pyarrow

        if self._rows:
            table = pyarrow.Table.from_pylist(self._rows, schema=self._schema)
            self._open(table.schema)
            self._writer.write_table(table)
            self._rows.clear()
        return self._schema

    def _open(self, schema: Any) -> None:
        import pyarrow

        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._schema, self._writer = schema, pyarrow.ipc.new_stream(str(self._partial), schema)

    def finish(self, schema: Any) -> None:
        """Put the file in its place; one without rows gets the schema of the other side."""
        self.flush()
        self._open(schema)
        self._writer.close()
        self._partial.replace(self.path)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._writer is not None:
            self._writer.close()
        self._partial.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
