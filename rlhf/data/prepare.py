"""From a project's set to what a stage trains on: rows -> format -> role -> checks -> split -> encoded rows on disk.

Rows pass through one at a time; what has to be remembered about them is kept on disk (`index`). All decisions follow
from a row's content, the project's seed and its `holdout`, so that two stages, or two processes, decide alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf import __version__
from rlhf.config.project import SUPPLIERS, DatasetConfig, ProjectConfig
from rlhf.data.arrow import ArrowFile
from rlhf.data.checks import check_left, check_limits, fault, none_held_out, row_key, too_few
from rlhf.data.findings import FINDINGS_FILE, Findings
from rlhf.data.formats import find
from rlhf.data.index import Index
from rlhf.data.inspector import Inspector
from rlhf.data.ledger import (
    DROPPED_FILE,
    DUPLICATE,
    HELD_OUT,
    IDENTICAL,
    LEDGER_FILE,
    OTHER_HALF,
    SAME_PROMPT,
    SAMPLED_OUT,
    Ledger,
)
from rlhf.data.records import Encoded, Prompt, Record, Text, Unusable, as_role
from rlhf.data.sources import fingerprint, read_rows
from rlhf.data.splits import Side, content_key, contexts, copies, half_of, own_prompt, side
from rlhf.data.stream import progress, worked_ahead
from rlhf.errors import UserError

if TYPE_CHECKING:
    import datasets

_SIDES: tuple[Side, Side] = ("train", "eval")
_KEY_FILE = "prepared.json"
_INDEX_FILE = "index.partial"
_FILES = (LEDGER_FILE, DROPPED_FILE, FINDINGS_FILE)
_LAYOUT = 4
"""Version of the layout of a prepared folder; folders of other versions are prepared again."""
_REPEATED, _REPEATED_SHARE = 1_000_000, 100
"""Weights may repeat rows this often in total, or this often per row read on average, whichever is more."""
Encode = Callable[[Any], Encoded | list[Encoded]]
"""Turns a record into a row of columns, or into several."""


@dataclass(frozen=True)
class Prepared:
    """What a stage trains on."""

    train: datasets.Dataset
    """Encoded rows, memory-mapped; with the column `extra` (the row's other columns as JSON) if asked for."""
    eval: datasets.Dataset
    """The held-out rows likewise; may be empty."""
    ledger: Ledger
    """What became of every row."""
    findings: Findings
    """What in the usable rows misleads training."""


@dataclass(frozen=True, slots=True)
class _UsableRow:
    """A row that passed the checks, with its side of the split and how often it is used."""

    record: Record
    row: dict[str, Any]
    side: Side
    copies: int


def prepare(
    project: ProjectConfig,
    role: str,
    encode: Encode,
    directory: Path,
    keep_columns: bool = False,
    key: str | None = None,
    ahead: Callable[[list[Record]], None] | None = None,
    half: int | None = None,
) -> Prepared:
    """Prepare a set for a stage, or reuse what an earlier, identical call prepared in this folder.

    Args:
        project: The project; `project.data` has the sets.
        role: demonstrations, preferences, feedback, prompts or rollouts.
        encode: Turns a record into columns, always of the same names and types, or into several rows of them; raises
            Unusable for a record to drop.
        directory: Where `train/`, `eval/`, `ledger.json`, `dropped.jsonl` and `findings.json` go: all of them or none.
        keep_columns: Add the column `extra`, the row's other columns as a JSON object.
        key: Identifies `encode` (tokenizer, limits), so that an earlier preparation of the same data can be reused.
        ahead: Works ahead, on a thread of its own, on records that `encode` will get soon (`Codec.ahead`).
        half: 0 or 1 to train on one half of the prompts only; `key` must tell the halves apart.

    Raises:
        UserError: The set is missing or malformed, nothing is left to train on, or it exceeds `data.limits`. In the
            last case the folder is complete and can be inspected; every later call checks the limits again.
    """
    identity = _identity(project, role, keep_columns, key) if key is not None else None
    key_file = directory / _KEY_FILE
    if identity is None or _read_key(key_file) != identity:
        directory.mkdir(parents=True, exist_ok=True)
        _prepare(project, role, encode, directory, keep_columns, ahead, half)
        key_file.write_text(json.dumps({"key": identity}), encoding="utf-8")
    prepared = load_prepared(directory)
    check_limits(project.data.limits, role, prepared.ledger, prepared.findings)
    return prepared


def _prepare(
    project: ProjectConfig,
    role: str,
    encode: Encode,
    directory: Path,
    keep_columns: bool,
    ahead: Callable[[list[Record]], None] | None,
    half: int | None,
) -> None:
    """Write the files of a prepared folder, in place of earlier ones; leaves nothing behind if it fails."""
    for name in (_KEY_FILE, *_FILES):  # earlier files are out of date and must not be taken for complete
        (directory / name).unlink(missing_ok=True)
    files = {name: ArrowFile(directory / name / "data.arrow") for name in _SIDES}
    try:
        with Ledger(role, directory) as ledger, Index(directory / _INDEX_FILE) as index:
            inspector = Inspector(role, index)
            items = _usable_rows(project, role, ledger, index, inspector)
            if half is not None:
                items = _of_half(items, half, project.seed, ledger)
            if ahead is not None:
                items = worked_ahead(items, lambda batch: ahead([item.record for item in batch]))
            for item in items:
                _encode(item, encode, keep_columns, files, ledger, inspector)
            check_left(role, ledger, project.holdout)
            schema = files["train"].flush() or files["eval"].flush()
            for file in files.values():
                file.finish(schema)
            inspector.findings(*too_few(ledger, project.holdout)).save(directory)
    except BaseException:
        for file in files.values():
            file.discard()
        (directory / FINDINGS_FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()  # if nothing else is in it
        raise
    print(ledger.line(), file=sys.stderr)


def load_prepared(directory: Path) -> Prepared:
    """What `prepare` left in a folder.

    Raises:
        UserError: A file is missing.
    """
    from datasets import Dataset

    paths = [directory / name / "data.arrow" for name in _SIDES]
    for path in (*paths, *(directory / name for name in _FILES)):
        if not path.is_file():
            raise UserError(f"{directory}: no prepared data here ({path.relative_to(directory)} is missing)")
    train, held_out = (Dataset.from_file(str(path)) for path in paths)
    return Prepared(train, held_out, Ledger.load(directory), Findings.load(directory))


def iter_records(project: ProjectConfig, role: str, ledger: Ledger | None = None) -> Iterator[tuple[Record, Side]]:
    """Records of a set that passed the checks, in the role's form, each once with its side. Needs no tokenizer.

    Args:
        project: The project.
        role: demonstrations, preferences or prompts.
        ledger: Counts what became of the rows.
    """
    ledger = ledger or Ledger(role)
    with Index() as index:
        for item in _usable_rows(project, role, ledger, index):
            _count_used(item, ledger)
            yield item.record, item.side


def evaluation_prompts(project: ProjectConfig, limit: int, ledger: Ledger | None = None) -> list[Prompt]:
    """Prompts that no stage trained on, each once: those of `data.prompts`, else held-out ones of another set.

    Args:
        project: The project; without `data.prompts`, another of its sets is read.
        limit: Most prompts wanted. If there are more, their hashes decide, so that their order does not matter.
        ledger: Counts what became of the rows read.

    Returns:
        The prompts, in the order of their set.

    Raises:
        UserError: There are none.
    """
    role = source_set(project, "prompts")
    ledger = ledger or Ledger(role)
    chosen: list[tuple[int, int, Prompt]] = []  # a heap whose smallest entry is the largest hash: the next to go
    with Index() as seen:
        for number, (record, where) in enumerate(iter_records(project, role, ledger)):
            digest = content_key(own_prompt(record))
            if where == "train" or not seen.add(digest):
                continue
            prompt = as_role(record, "prompts")
            assert isinstance(prompt, Prompt)
            entry = (-int.from_bytes(digest, "big"), number, prompt)
            if len(chosen) < limit:
                heapq.heappush(chosen, entry)
            else:
                heapq.heappushpop(chosen, entry)
    if not chosen:
        raise UserError(
            f"{project.path}: no prompts to evaluate on: {none_held_out(role, ledger.trained, project.holdout)}; "
            "give data.prompts, a larger holdout, or more rows"
        )
    return [prompt for _, _, prompt in sorted(chosen, key=lambda entry: entry[1])]


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


def fingerprints(project: ProjectConfig, role: str) -> dict[str, Any]:
    """What identifies the rows of a set and their split, without reading a row: equal fingerprints mean equal rows.

    If the project lacks the role's own set, this is about the set that supplies it instead.
    """
    role = source_set(project, role)
    base = project.path.parent
    identity: dict[str, Any] = {"sources": [fingerprint(source, base) for source in dataset(project, role).sources]}
    if role != "prompts":
        identity.update(holdout=project.holdout, seed=project.seed)
        if project.data.prompts is not None:
            identity["held_out_prompts"] = [fingerprint(source, base) for source in project.data.prompts.sources]
    return identity


def dataset(project: ProjectConfig, role: str) -> DatasetConfig:
    """The configuration of a set.

    Raises:
        UserError: The project does not have it.
    """
    return getattr(project.data, source_set(project, role))


def _usable_rows(
    project: ProjectConfig, role: str, ledger: Ledger, index: Index, inspector: Inspector | None = None
) -> Iterator[_UsableRow]:
    """Rows of a set that passed the checks; the inspector sees them, and the ledger counts the dropped ones."""
    own = source_set(project, role) == role
    held_out = role != "prompts" and _hold_out_prompts(project, index, inspector)
    for record, row, weight in progress(_records(project, role, ledger, inspector), role):
        digest = row_key(record)
        if not index.add(digest):
            ledger.drop(SAME_PROMPT if isinstance(record, Prompt) and not own else DUPLICATE, record.origin, row)
            continue
        prompts = contexts(record)
        where = "eval" if role == "prompts" else side(prompts[0], project.holdout, project.seed)
        if where == "train" and held_out and any(_held_out_key(prompt) in index for prompt in prompts):
            ledger.held_out += 1
            ledger.drop(HELD_OUT, record.origin, row)
            continue
        if inspector is not None:
            inspector.keep(record, where)
        if where == "eval":
            ledger.held_out += 1
            yield _UsableRow(record, row, "eval", 1)
        elif times := copies(digest, weight, project.seed):
            yield _UsableRow(record, row, "train", times)
        else:
            ledger.drop(SAMPLED_OUT, record.origin, row)


def _records(
    project: ProjectConfig, role: str, ledger: Ledger, inspector: Inspector | None = None
) -> Iterator[tuple[Record, dict[str, Any], float]]:
    """Faultless records of a set in the role's form, each with its row and the weight of its source."""
    for source in dataset(project, role).sources:
        layout = None
        for row, origin in read_rows(source, project.path.parent):
            ledger.leave_out(row, origin)
            layout = layout or find(source.format, row, origin)
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
                    reason = fault(record)
                    if inspector is not None and reason in (None, IDENTICAL):
                        inspector.read(record)
                    if reason is not None:
                        raise Unusable(reason)
                except Unusable as error:
                    ledger.drop(error.reason, origin, content)
                    continue
                yield record, content, source.weight


def _hold_out_prompts(project: ProjectConfig, index: Index, inspector: Inspector | None) -> bool:
    """Remember the prompts of `data.prompts`, which nothing may train on; returns whether there are any."""
    if project.data.prompts is None:
        return False
    for record, _, _ in _records(project, "prompts", Ledger("prompts")):
        for prompt in contexts(record):
            index.add(_held_out_key(prompt))
        if inspector is not None:
            inspector.hold_out(record)
    return True


def _held_out_key(prompt: Text) -> bytes:
    return b"held out" + content_key(prompt)


def _count_used(item: _UsableRow, ledger: Ledger) -> None:
    if item.side == "train":
        ledger.trained += 1
        ledger.repeated += item.copies - 1
        if ledger.repeated > max(_REPEATED, _REPEATED_SHARE * ledger.read):
            raise UserError(
                f"{item.record.origin}: its source's weight makes data.{ledger.name} more than {_REPEATED_SHARE} times "
                "as long as what was read; lower weight"
            )
    else:
        ledger.evaluated += 1


def _of_half(items: Iterator[_UsableRow], half: int, seed: int, ledger: Ledger) -> Iterator[_UsableRow]:
    """All held-out rows, and the training rows of one half of the prompts."""
    for item in items:
        if item.side == "train" and half_of(contexts(item.record)[0], seed) != half:
            ledger.drop(OTHER_HALF, item.record.origin, item.row)
        else:
            yield item


def _encode(
    item: _UsableRow,
    encode: Encode,
    keep_columns: bool,
    files: dict[Side, ArrowFile],
    ledger: Ledger,
    inspector: Inspector,
) -> None:
    try:
        rows = encode(item.record)
    except Unusable as error:
        ledger.drop(error.reason, item.record.origin, item.row)
        return
    _count_used(item, ledger)
    rows = rows if isinstance(rows, list) else [rows]
    ledger.truncated += any(row.truncated for row in rows)
    ledger.eos_lost += any(row.eos_lost for row in rows)
    ledger.prompt_trimmed += any(row.prompt_trimmed for row in rows)
    for row in rows:
        if not row.truncated:
            inspector.encoded(row.columns)
    extra = {"extra": json.dumps(item.record.extra)} if keep_columns else {}
    for _ in range(item.copies):
        for row in rows:
            files[item.side].add({**row.columns, **extra})


def _identity(project: ProjectConfig, role: str, keep_columns: bool, key: str) -> str:
    parts = [__version__, _LAYOUT, fingerprints(project, role), role, keep_columns, key]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_key(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
