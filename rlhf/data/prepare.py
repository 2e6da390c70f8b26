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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf import __version__
from rlhf.config.project import ProjectConfig
from rlhf.config.sets import SourceConfig
from rlhf.data.arrow import ArrowFile
from rlhf.data.checks import check_left, check_limits, none_held_out, row_key, too_few
from rlhf.data.findings import FINDINGS_FILE, Findings
from rlhf.data.index import Index
from rlhf.data.inspector import Inspector
from rlhf.data.ledger import (
    ALL_TRAINED,
    DROPPED_FILE,
    DUPLICATE,
    LEDGER_FILE,
    OTHER_HALF,
    SAME_PROMPT,
    SAMPLED_OUT,
    Ledger,
)
from rlhf.data.records import Encoded, Prompt, Record, Unusable, as_role
from rlhf.data.reserved import Reserved
from rlhf.data.sets import always_trained, dataset, records, source_set, without_always_trained
from rlhf.data.sources import fingerprint
from rlhf.data.splits import Side, content_key, contexts, copies, half_of, own_prompt
from rlhf.data.stream import progress, worked_ahead
from rlhf.durable import sync_tree, written_whole
from rlhf.errors import UserError

if TYPE_CHECKING:
    import datasets

_SIDES: tuple[Side, Side] = ("train", "eval")
_KEY_FILE = "prepared.json"
_INDEX_FILE = "index.partial"
_FILES = (LEDGER_FILE, DROPPED_FILE, FINDINGS_FILE)
_LAYOUT = 5
"""Version of the layout of a prepared folder; folders of other versions are prepared again."""
_ORIGIN = "origin"
"""Column of file and line on disk; no trainer sees it."""
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
    origins: Sequence[str]
    """File and line that each training row is from; read from disk as it is asked for."""
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
        sync_tree(directory)  # the key says that all of it is there
        with written_whole(key_file) as partial:
            partial.write_text(json.dumps({"key": identity}), encoding="utf-8")
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
    origins: Any = train[_ORIGIN]
    train, held_out = (rows.remove_columns(_ORIGIN) for rows in (train, held_out))
    return Prepared(train, held_out, origins, Ledger.load(directory), Findings.load(directory))


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
    role = source_set(without_always_trained(project), "prompts")
    ledger = ledger or Ledger(role)
    prompts = _held_out_prompts(project, role, limit, ledger)
    if not prompts:
        raise UserError(
            f"{project.path}: no prompts to evaluate on: {none_held_out(role, ledger.trained, project.holdout)}; "
            "give data.prompts, a larger holdout, or more rows"
        )
    return prompts


def _final_comparison(project: ProjectConfig) -> list[Prompt]:
    """The prompts that a source which is all trained on may not have: those that policies are compared on.

    They are found without such sources, so that these do not decide them; none where there is no such source.
    """
    own = without_always_trained(project)
    role = own.data.supplier("prompts")
    if own is project or role is None or not project.evaluate.enabled:
        return []
    return _held_out_prompts(own, role, project.evaluate.prompts, Ledger(role))


def _held_out_prompts(project: ProjectConfig, role: str, limit: int, ledger: Ledger) -> list[Prompt]:
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
    return [prompt for _, _, prompt in sorted(chosen, key=lambda entry: entry[1])]


def fingerprints(project: ProjectConfig, role: str) -> dict[str, Any]:
    """What identifies the rows of a set and their split: equal fingerprints mean equal rows.

    If the project lacks the role's own set, this is about the set that supplies it instead. The prompts to evaluate on
    are the same whatever sources are all trained on.
    """
    own = without_always_trained(project)
    if role == "prompts":
        project = own
    role = source_set(project, role)
    identity: dict[str, Any] = {"sources": _fingerprints(project, role, dataset(project, role).sources)}
    if role != "prompts":
        identity.update(holdout=project.holdout, seed=project.seed)
        if project.data.prompts is not None:
            identity["held_out_prompts"] = _fingerprints(project, "prompts", project.data.prompts.sources)
    if own is not project:
        sources = always_trained(project).items()
        identity["all_trained"] = {name: _fingerprints(project, name, given) for name, given in sources}
        if own.data.supplier("prompts") is not None and project.evaluate.enabled:
            identity["compared"] = {"limit": project.evaluate.prompts, **fingerprints(own, "prompts")}
    return identity


def _fingerprints(project: ProjectConfig, name: str, sources: Sequence[SourceConfig]) -> list[dict[str, Any]]:
    return [fingerprint(source, project.path.parent, name) for source in sources]


def _usable_rows(
    project: ProjectConfig, role: str, ledger: Ledger, index: Index, inspector: Inspector | None = None
) -> Iterator[_UsableRow]:
    """Rows of a set that passed the checks; the inspector sees them, and the ledger counts the dropped ones."""
    own = source_set(project, role) == role
    reserved = Reserved(project, role, index, _final_comparison(project), inspector)
    for record, row, source in progress(records(project, role, ledger, inspector), role):
        digest = row_key(record)
        where, reason = reserved.place(record, source)
        if reason != ALL_TRAINED and not index.add(digest):
            ledger.drop(SAME_PROMPT if isinstance(record, Prompt) and not own else DUPLICATE, record.origin, row)
            continue
        if reason is not None:
            ledger.held_out += reason != ALL_TRAINED
            ledger.drop(reason, record.origin, row)
            continue
        if inspector is not None:
            inspector.keep(record, where)
        if where == "eval":
            ledger.held_out += 1
            yield _UsableRow(record, row, "eval", 1)
        elif times := copies(digest, source.weight, project.seed):
            yield _UsableRow(record, row, "train", times)
        else:
            ledger.drop(SAMPLED_OUT, record.origin, row)


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
            files[item.side].add({**row.columns, **extra, _ORIGIN: item.record.origin})


def _identity(project: ProjectConfig, role: str, keep_columns: bool, key: str) -> str:
    parts = [__version__, _LAYOUT, fingerprints(project, role), role, keep_columns, key]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_key(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
