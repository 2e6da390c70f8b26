"""What `rlhf init` does: looks, asks what it cannot know, writes the YAML, and says what to type next."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import rlhf
from rlhf.config.load import load_project
from rlhf.config.project import ProjectConfig
from rlhf.data.formats import find
from rlhf.data.sources import splits_of
from rlhf.durable import written_whole
from rlhf.errors import UserError
from rlhf.init.ask import Asker
from rlhf.init.choose import File, choose
from rlhf.init.columns import Sample, propose, ratings, with_chat
from rlhf.init.draft import Batch, Draft, first_batches
from rlhf.init.look import look, measure, read_sample
from rlhf.init.model import ModelFacts, look_at_model
from rlhf.init.reading import WORDS, Reading, kind_of
from rlhf.init.settings import described, header, settings
from rlhf.init.show import shown_columns
from rlhf.init.write import rendered

_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Options:
    """What the command line says; each field is the flag of its name."""

    files: Sequence[str]
    model: str | None = None
    to: Sequence[str] | None = None
    out: Path | None = None
    columns: Sequence[str] = ()
    """Assignments such as `prompt=question`."""
    good: Sequence[str] = ()
    """Ratings that are good: the lowest of a scale, or words."""
    reward: str | None = None
    full: bool = False
    """Train all weights."""
    limit: int | None = None
    force: bool = False


def init(options: Options, say: Callable[[str], None]) -> Path:
    """Write a project's YAML for a user's files.

    Args:
        options: What the command line says.
        say: Prints a line.

    Returns:
        The file that was written.

    Raises:
        UserError: A file or the model cannot be read, an answer is missing, or the YAML is there already.
    """
    out = _out(options)
    asker = Asker.here(say)
    columns = _assignments(options.columns)
    files = [file for path in options.files for file in _files(path, options, columns, asker)]
    if unused := [column for column in columns.values() if not any(_reads(file, column) for file in files)]:
        raise UserError(f"--columns: no file has a column {unused[0]!r} beside the others that are named")
    name = options.model or asker.ask("--model", "Which model: a folder, or an id on the hub?")
    model = look_at_model(name)
    if model.unknown is not None:
        say(f"{name}: {model.unknown}; the YAML is written with what its name tells")
    if model.policy == "seq2seq":
        files = [_plain(file, options.limit, say) for file in files]
    files = [replace(file, lengths=measure(file.facts.records, model.codec)) for file in files]
    choice = choose(files, model, options.to, options.reward)
    adapter = not options.full and model.policy not in ("label", "span") and choice.policy in ("causal_lm", "seq2seq")
    draft = Draft(_name(out), tuple(files), model, choice, adapter, _dtype(model, adapter), options.limit)
    with _explained(out):
        _write(draft, out)
    quoted = shlex.quote(str(out))
    say("")
    say(f"{out} trains {', '.join(choice.stages)}; each of its lines says why it is there. Next:")
    say(f"  rlhf check {quoted}")
    say(f"  rlhf run {quoted}")
    return out


def _out(options: Options) -> Path:
    """Where the YAML goes."""
    first = Path(options.files[0].rstrip("/")).name.split(".")[0] or "project"
    out = options.out or Path(f"{_NO_NAME.sub('-', first).strip('-._') or 'project'}.yaml")
    with _explained(out):
        if out.is_dir():
            raise UserError(f"--out: {out} is a folder")
        if out.exists() and not out.is_file():  # /dev/null would be replaced by a file for everybody
            raise UserError(f"--out: {out} is no file")
        if (out.exists() or out.is_symlink()) and not options.force:
            raise UserError(f"{out} is there already; take another with --out, or replace it with --force")
        if not out.parent.is_dir():
            raise UserError(f"--out: there is no folder {out.parent}")
    return out


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    """What the operating system refuses, as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out: {error.filename or out}: {(error.strerror or str(error)).lower()}") from None


def _name(out: Path) -> str:
    """The project's name: letters, digits and a few others, as it names a folder."""
    return _NO_NAME.sub("-", out.stem).strip("-._")[:100] or "project"


def _assignments(words: Iterable[str]) -> dict[str, str]:
    """`prompt=question,chosen=good` as a mapping."""
    columns = {}
    for part in (part.strip() for word in words for part in word.split(",") if part.strip()):
        ours, separator, theirs = part.partition("=")
        if not separator or not ours.strip() or not theirs.strip():
            raise UserError(f"--columns: {part!r}: expected OURS=THEIRS, such as prompt=question,completion=answer")
        columns[ours.strip()] = theirs.strip()
    return columns


def _files(path: str, options: Options, columns: Mapping[str, str], asker: Asker) -> list[File]:
    """A source of the user's, or each of its splits, looked at."""
    if path.startswith("votes:"):
        raise UserError(f"{path}: votes belong to later rounds of a project: rlhf run PROJECT.yaml --round 2")
    files = []
    splits: list[str | None] = [*splits_of(path, Path.cwd())]
    for split in splits or [None]:
        sample = read_sample(path, Path.cwd(), split, options.limit)
        label = path if split is None else f"{path} ({split})"
        reading = _reading(label, sample, options, columns, asker)
        facts = look(path, Path.cwd(), reading, split, options.limit)
        if not facts.used:
            reason, count = facts.dropped.most_common(1)[0]
            raise UserError(f"{label}: no row can be used: {count:,} × {reason}")
        asker.say(f"{label}: {WORDS[reading.kind]} ({reading.format}), {described(facts)}")
        if not reading.known or reading.chat:
            for line in shown_columns(path, reading, split):
                asker.say(f"  {line}")
            asker.confirm("--columns", "Read it so?")
        files.append(File(path, reading, facts, split))
    return files


def _plain(file: File, limit: int | None, say: Callable[[str], None]) -> File:
    """A file for an encoder-decoder, which reads plain text: text that would become a conversation stays as it is."""
    if not file.reading.chat:
        return file
    say(f"{file.path}: stays plain text, as an encoder-decoder reads it")
    reading = replace(file.reading, chat=False)
    return replace(file, reading=reading, facts=look(file.path, Path.cwd(), reading, file.split, limit))


def _reading(label: str, sample: Sample, options: Options, columns: Mapping[str, str], asker: Asker) -> Reading:
    """How a source is read: as the user says, as it is recognised, or as its columns suggest."""
    present = {column for row in sample.rows for column in row}
    if columns and set(columns.values()) <= present:
        return _named(label, sample, columns)
    good = list(options.good)
    unclear = ratings(sample)
    if unclear is not None and not good:
        column, values = unclear
        shown = ", ".join(values[:12]) + (" …" if len(values) > 12 else "")
        question = f"{label}: from which {column!r} on is a reply good, of {shown}? (`none`: it does not judge replies)"
        good = [asker.ask("--good", question)]
    reading = propose(sample, [] if good == ["none"] else good)
    if reading is not None:
        return reading
    if columns:
        return _named(label, sample, columns)
    names = ", ".join(sorted(map(str, present))) or "none"
    question = (
        f"{label}: no format has these columns: {names}. Which are what? Such as prompt=question,completion=answer:"
    )
    return _named(label, sample, _assignments([asker.ask("--columns", question)]))


def _named(label: str, sample: Sample, columns: Mapping[str, str]) -> Reading:
    """The reading of columns that the user named."""
    row = sample.rows[0]
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise UserError(f"--columns: {label} has no column {missing[0]!r} (found: {', '.join(map(str, row))})")
    renamed = {key: cell for key, cell in row.items() if key not in columns.values()}
    layout = find(None, renamed | {ours: row[theirs] for ours, theirs in columns.items()}, label)
    changed = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    return with_chat(Reading(kind_of(layout.name), layout.name, changed, known=False), sample)


def _reads(file: File, column: str) -> bool:
    """Whether a column of a file is read, under its own name or another."""
    return column in file.reading.columns.values() or column in file.reading.columns


def _dtype(model: ModelFacts, adapter: bool) -> str | None:
    """bfloat16 for the frozen weights of a large model on a GPU."""
    import torch

    large = model.parameters is None or model.parameters >= 1e9
    return "bfloat16" if adapter and large and torch.cuda.is_available() else None


def _write(draft: Draft, out: Path) -> None:
    """Write the YAML, whole or not at all, with batches that fit this machine."""
    from rlhf.init.fit import fitted, timed
    from rlhf.preflight import Machine, Models

    machine, models = Machine.here(), Models()
    with written_whole(out) as partial:

        def project_of(batches: Mapping[str, Batch]) -> ProjectConfig:
            text = rendered(settings(draft, batches), header(rlhf.__version__, draft, machine.label))
            partial.write_text(text, encoding="utf-8")
            return load_project(partial)

        batches = fitted(first_batches(draft), machine, project_of, models)
        lengths = {stage: draft.row_lengths(stage) for stage in draft.choice.stages}
        project_of(timed(batches, project_of(batches), machine, lengths, models))
