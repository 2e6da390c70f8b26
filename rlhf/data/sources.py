"""Where rows come from: a file, a folder of files, a folder of images by class, a dataset on the hub, or votes.

A relative path is looked up from the current folder, then from the folder of the project's YAML. A name that is not a
file but could be a hub id is taken for one: `org/name`, optionally with `:subset` and `@revision`
(`openai/gsm8k:main@cc7b047b`).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import os
import re
from pathlib import Path
from typing import Any

from rlhf import network
from rlhf.config.ranges import shown
from rlhf.config.sets import SourceConfig
from rlhf.data.folders import Classes, classes_in, read_classes, splits_in
from rlhf.data.plain import plain
from rlhf.data.readers import Row, Rows, read_file, reader_of, with_names
from rlhf.data.records import Image
from rlhf.data.vote_source import fingerprint_of_votes, is_votes, locate_run, read_vote_rows
from rlhf.errors import UserError, reason

_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*(/[\w.-]+)?)(:(?P<subset>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
_SPLIT_NAME = re.compile(r"(train|training|test|testing|valid|validation|val|dev|eval)(?![a-z])", re.IGNORECASE)


def read_rows(source: SourceConfig, base: Path, role: str | None = None) -> Rows:
    """Rows of a source with their origins, one at a time, in constant memory.

    Args:
        source: What to read, and how to rename its columns.
        base: Folder in which relative paths are looked up second.
        role: The set that the rows are for, by its key in `data:`; votes give other rows to each.

    Yields:
        The row, its values converted to JSON's types (`plain`), and its origin: `file.jsonl:12` (line),
        `file.parquet#12` and `votes:run#12` (number of the row) or `folder/class/12.png`. In the column `image` a path
        that is relative to the file that names it becomes absolute.

    Raises:
        UserError: The source is missing, unreachable, empty or malformed; the message names the place.
    """
    path = locate(source.source, base)
    folder = None
    if is_votes(source.source):
        rows = read_vote_rows(source, base, role)
    elif path is None:
        rows = _hub_rows(source, base)
    elif (classes := _classes(source, path)) is not None:
        rows = read_classes(classes, _name(source) + (f"/{source.split}" if source.split else ""))
    else:
        folder = path if path.is_dir() else path.parent
        rows = itertools.chain.from_iterable(read_file(file, name) for file, name in _files(source, path))
    for row, origin in itertools.islice(rows, source.limit):
        row = {column: plain(value) for column, value in row.items()}
        row = _rename(row, source.columns, origin) if source.columns else row
        row = _translate(row, source.values, origin) if source.values else row
        yield _found_image(row, folder) if folder is not None and "image" in row else row, origin


def fingerprint(source: SourceConfig, base: Path, role: str | None = None) -> dict[str, Any]:
    """What identifies a source's content, without using the network or, but for votes, reading a row.

    Args:
        source: What is read.
        base: Folder in which relative paths are looked up second.
        role: The set that the rows are for, by its key in `data:`.

    Returns:
        For a file `{"file": name, "sha256": …}`, without the content of images that it names; for a folder `{"folder":
        name, "sha256": …}` over its data files, or its images, and their names; for a hub dataset `{"hub": id, "split":
        …, "revision": …}` (revision None: whatever the hub serves); for votes `{"votes": run, "sha256": …}`. Options
        that change what is read are added if set: format, weight, limit, columns, split, train_all.
    """
    path = locate(source.source, base)
    content: dict[str, Any]
    if is_votes(source.source):
        content = fingerprint_of_votes(source, base, role)
    elif path is None:
        parts = _hub_parts(source.source, base)
        content = {"hub": parts["id"], "split": source.split or "train", "revision": parts["revision"]}
        if parts["subset"]:
            content["subset"] = parts["subset"]
    else:
        classes = _classes(source, path) or {}
        named = [(file, f"{label}/{file.name}") for label, images in classes.items() for file in images]
        digest = hashlib.sha256()
        for file, name in named or [(file, file.name) for file, _ in _files(source, path)]:
            digest.update(f"{name}\0".encode() if path.is_dir() else b"")
            digest.update(_sha256(file))
        whole = digest.hexdigest() if path.is_dir() else _sha256(path).hex()
        content = {"folder" if path.is_dir() else "file": path.name, "sha256": whole}
    default = SourceConfig(source.source)
    options = [field.name for field in dataclasses.fields(source) if field.name not in ("source", "streaming")]
    return {**{key: value for key in options if (value := getattr(source, key)) != getattr(default, key)}, **content}


def locate(source: str, base: Path) -> Path | None:
    """The file or folder that a source names, of votes the run's; None if there is none and the name may be a hub id.

    Raises:
        UserError: There is none, and the name cannot be a hub id.
    """
    if is_votes(source):
        return locate_run(source, base)
    given = Path(source).expanduser()
    for path in (given, base / given):
        try:
            if path.exists():
                return path
            if path.is_symlink():
                raise UserError(f"{source}: a link that leads nowhere")
        except OSError as error:  # a name too long, a folder that may not be entered
            raise UserError(f"{source}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if _looks_like_path(source):
        raise UserError(f"{source}: no such file or folder{_nearest(given, base)}")
    return None


def splits_of(source: str, base: Path) -> list[str]:
    """The splits that a folder has files, or folders of images, of; none where it has a single one.

    Args:
        source: A file, a folder or a hub id.
        base: Folder in which relative paths are looked up second.

    Raises:
        UserError: There is no such file or folder, and it cannot be a hub id.
    """
    path = locate(source, base)
    if path is None or not path.is_dir():
        return []
    try:
        files = sorted(file for file in path.iterdir() if _is_data(file))
        found = _split_names(files) if files else splits_in(path)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    return found if len(found) > 1 else []


def _split_names(files: list[Path]) -> list[str]:
    return sorted({match[0] for file in files if (match := _SPLIT_NAME.match(file.name))})


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or reader_of(source) is not None or not _HUB_ID.fullmatch(source)


def _nearest(path: Path, base: Path) -> str:
    """A hint at the most similar name in that folder, or nothing."""
    for folder in (path.parent, base / path.parent):
        if folder.is_dir() and os.access(folder, os.R_OK):
            near = difflib.get_close_matches(path.name, sorted(os.listdir(folder)), n=1, cutoff=0.6)
            if near:
                return f" (did you mean {str(path.parent / near[0])!r}?)"
    return ""


def _files(source: SourceConfig, path: Path) -> list[tuple[Path, str]]:
    """The data files of a source, sorted by name, each with its name in messages."""
    if not path.is_dir():
        if source.split is not None:
            raise UserError(f"{source.source}: split {source.split!r} is asked for, but this is a single file")
        if not path.is_file():
            raise UserError(
                f"{source.source}: a pipe or a device, which cannot be read twice; write it to a file first"
            )
        return [(path, source.source)]
    try:
        files = sorted(file for file in path.iterdir() if _is_data(file))
    except OSError as error:
        raise UserError(f"{source.source}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if not files:
        raise UserError(
            f"{source.source}: no data file in this folder (jsonl, json, csv, tsv, parquet), and no folders of images"
        )
    if source.split is not None:
        chosen = [file for file in files if re.match(re.escape(source.split) + r"(?![A-Za-z0-9])", file.name)]
        if not chosen:
            names = ", ".join(file.name for file in files[:8])
            raise UserError(f"{source.source}: no file of split {source.split!r} in this folder (found: {names})")
        files = chosen
    elif len(splits := _split_names(files)) > 1:
        raise UserError(f"{source.source}: files of several splits ({', '.join(splits)}): name one with split")
    return [(file, f"{_name(source)}/{file.name}") for file in files]


def _classes(source: SourceConfig, path: Path) -> Classes | None:
    """The images of a folder by class; None if the source is no such folder.

    Raises:
        UserError: It cannot be read, or it is not told which of its splits to read.
    """
    if not path.is_dir():
        return None
    try:
        if any(map(_is_data, path.iterdir())):
            return None
        splits = splits_in(path)
        classes = classes_in(path / source.split if source.split in splits else path)
    except OSError as error:
        raise UserError(f"{source.source}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if splits and source.split is None:
        raise UserError(f"{_name(source)}: folders of images in splits ({', '.join(splits)}): name one with split")
    if (splits or classes) and source.split is not None and source.split not in splits:
        found = ", ".join(splits) or "classes, not splits"
        raise UserError(f"{_name(source)}: no folder of split {source.split!r} (found: {found})")
    return classes or None


def _name(source: SourceConfig) -> str:
    return source.source.rstrip("/") or "/"


def _found_image(row: Row, folder: Path) -> Row:
    """The row with the path of its image, relative to a folder, made absolute."""
    image = row["image"]
    if isinstance(image, dict) and image.keys() == {"bytes", "path"}:  # as `datasets` stores an image in a file
        image = image["path"]
    if not isinstance(image, str) or isinstance(image, Image) or image.startswith("data:"):
        return row
    try:
        found = bool(image) and (folder / image).is_file()
    except (OSError, ValueError):  # a text too long for a path, or with a null character
        found = False
    return {**row, "image": Image((folder / image).absolute())} if found else row


def _is_data(file: Path) -> bool:
    hidden = file.name.startswith((".", "_")) or file.name in ("dataset_info.json", "dataset_infos.json", "state.json")
    return file.is_file() and not hidden and reader_of(file.name) is not None


def _sha256(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def _rename(row: Row, columns: dict[str, str], origin: str) -> Row:
    for theirs in columns.values():
        if _cell(row, theirs) is ...:
            raise UserError(f"{origin}: column {theirs!r} is missing (found: {', '.join(map(str, row))})")
    renamed = set(columns.values())
    for ours, theirs in columns.items():
        if ours in row and ours not in renamed:
            raise UserError(
                f"{origin}: columns: {ours}: {theirs} would replace the row's own column {ours!r}; to keep it, give it "
                f"another name (columns: {{{ours}: {theirs}, other_{ours}: {ours}}})"
            )
    return {key: value for key, value in row.items() if key not in renamed} | {
        ours: _cell(row, theirs) for ours, theirs in columns.items()
    }


def _translate(row: Row, values: dict[str, dict[Any, Any]], origin: str) -> Row:
    """The row with what its values stand for; 4, 4.0 and "4" are one value, as in a table all values are text."""
    translated = {}
    for column, meanings in values.items():
        if column not in row:
            raise UserError(f"{origin}: column {column!r} is missing (found: {', '.join(map(str, row))})")
        known = {value_name(value): meaning for value, meaning in meanings.items()}
        if (name := value_name(row[column])) not in known and row[column] is not None:
            listed = ", ".join(known)
            raise UserError(f"{origin}: column {column!r} is {shown(row[column])}, but `values` lists {listed}")
        translated[column] = known.get(name)
    return {**row, **translated}


def value_name(value: Any) -> str:
    """A value of a column as text, the same for 4, 4.0 and "4", and for true and "True"."""
    text = str(value).strip()
    whole = re.fullmatch(r"(-?[0-9]{1,15})\.0*", text)
    return whole[1] if whole else text.lower() if text.lower() in ("true", "false") else text


def _cell(row: Row, name: str) -> Any:
    """The column of this name, or what `outer.inner` names within an object; `...` if there is neither."""
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    return _cell(row[outer], inner) if inner and isinstance(row.get(outer), dict) else ...


def _hub_parts(source: str, base: Path) -> dict[str, str | None]:
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise UserError(f"{source}: no such file or folder{_nearest(Path(source), base)}")
    return match.groupdict()


def _hub_rows(source: SourceConfig, base: Path) -> Rows:
    parts = _hub_parts(source.source, base)
    name, split = str(parts["id"]), source.split or "train"
    unreachable = f"{name!r} is neither a file here nor a reachable hub dataset{_nearest(Path(name), base)}"
    if not network.hub_resolves() and not _is_cached(name):
        raise UserError(unreachable)
    from datasets import ClassLabel, load_dataset
    from datasets import Image as ImageFeature

    try:
        data = load_dataset(
            name, parts["subset"], split=split, revision=parts["revision"], streaming=source.streaming
        )  # fmt: skip
    except OSError:  # no connection, no such dataset, no access: all of the hub's errors are OSErrors
        raise UserError(unreachable) from None
    except ValueError as error:  # an unknown split or subset: the message lists those there are
        raise UserError(f"{source.source}: {' '.join(str(error).split())}") from None
    except Exception as error:  # a script, a file without a builder, a missing package: datasets raises anything
        raise UserError(f"{source.source}: datasets cannot load it: {reason(error)}") from None
    features = getattr(data, "features", None) or {}
    for column, feature in features.items():
        if isinstance(feature, ImageFeature):
            data = data.cast_column(column, ImageFeature(decode=False))
    names = {column: feature.names for column, feature in features.items() if isinstance(feature, ClassLabel)}
    rows = iter(data)
    for number in itertools.count(1):
        try:
            row = next(rows)
        except StopIteration:
            break
        except OSError as error:
            raise UserError(f"{source.source}: the connection was lost after row {number - 1}: {error}") from None
        except Exception as error:  # a column that needs a package to be decoded, say
            raise UserError(f"{source.source}: row {number} cannot be read: {reason(error)}") from None
        yield with_names(dict(row), names), f"{name}/{split}#{number}"
    if number == 1:
        raise UserError(f"{source.source}: no rows in split {split!r}")


def _is_cached(name: str) -> bool:
    """Whether an earlier download of this dataset lies on disk, which loads without a network."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    caches = (
        Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")) / name.replace("/", "___"),
        Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"datasets--{name.replace('/', '--')}",
    )
    return any(path.exists() for path in caches)
