"""The ledger, which accounts for every row that was read, and the checks that need no tokenizer."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rlhf.data.findings import Finding
from rlhf.data.plain import Opaque
from rlhf.data.records import Demonstration, Feedback, Labelled, Record, Text
from rlhf.data.splits import canonical, completions
from rlhf.errors import UserError

if TYPE_CHECKING:
    from rlhf.config.project import LimitsConfig
    from rlhf.data.findings import Findings

LEDGER_FILE = "ledger.json"
DROPPED_FILE = "dropped.jsonl"

SAMPLED_OUT = "sampled out"
"""Reason of rows that a weight below 1 leaves out: nothing is wrong with them, so they are counted but not kept."""
OTHER_HALF = "of the other half"
"""Reason of pairs in the half that a gold reward model trains on and the others do not, or vice versa; not kept."""
DUPLICATE = "duplicate"
SAME_PROMPT = "prompt of an earlier row"
"""Reason of rows that add no new prompt where only prompts are wanted: preferences may have several per prompt."""
IDENTICAL = "identical"
NEGATIVE = "negative feedback"
HELD_OUT = "prompt held out"
NO_FAULT = frozenset({DUPLICATE, SAME_PROMPT, HELD_OUT, SAMPLED_OUT, OTHER_HALF, NEGATIVE})
"""Reasons for leaving out rows that have nothing wrong with them."""

_FEW = 10
"""Fewer training rows than this are reported."""
_GAP = 1000
"""Class numbers up to this may be unused."""
_COUNTS = ("read", "trained", "evaluated", "repeated", "held_out", "truncated", "eos_lost", "prompt_trimmed")


class Ledger:
    """Counts what became of every row of one set; `read == trained + evaluated + sum(dropped)`.

    As a context manager it also keeps the dropped rows: `dropped.jsonl` and `ledger.json` appear in the folder when the
    context ends, and neither does if it ends with an error. Without a folder a ledger only counts.

    Args:
        name: The set: demonstrations, preferences or prompts.
        directory: Where the two files go.

    Attributes:
        read: Rows read.
        trained: Rows trained on, each counted once.
        evaluated: Held-out rows to evaluate on.
        repeated: Further copies of training rows, from a weight above 1.
        held_out: Rows whose prompt is held out of training: evaluated on, or dropped.
        truncated: Used rows that lost tokens to the length limit.
        eos_lost: Truncated rows that lost their end-of-sequence token.
        prompt_trimmed: Truncated rows that lost tokens of their prompt.
        dropped: Rows left out, by reason; among them `duplicate`.
        left_out: Rows that lost a column, by column and kind of value.
        first: Origin of the first row dropped for each reason, and of the first that lost a column.
    """

    def __init__(self, name: str, directory: Path | None = None) -> None:
        self.name, self.directory = name, directory
        self.read = self.trained = self.evaluated = self.repeated = self.held_out = 0
        self.truncated = self.eos_lost = self.prompt_trimmed = 0
        self.dropped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def __enter__(self) -> Ledger:
        assert self.directory is not None, "a ledger without a folder only counts"
        self._partial = self.directory / f"{DROPPED_FILE}.partial"
        self._file = self._partial.open("w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.directory is not None
        self._file.close()
        if kind is not None:
            self._partial.unlink()
            return
        self.check()
        self._partial.replace(self.directory / DROPPED_FILE)
        self._write(self.directory)

    def drop(self, reason: str, origin: str, row: dict[str, Any]) -> None:
        """Count a row as dropped, and write it to `dropped.jsonl` with its reason."""
        self.dropped[reason] += 1
        self.first.setdefault(reason, origin)
        if self.directory is not None and reason not in (SAMPLED_OUT, OTHER_HALF, SAME_PROMPT):
            self._file.write(json.dumps({"origin": origin, "reason": reason, "row": row}, default=str) + "\n")

    def leave_out(self, row: dict[str, Any], origin: str) -> None:
        """Count the columns of a row that JSON cannot hold: reward functions do not get them."""
        for column, value in row.items():
            if isinstance(value, Opaque):
                what = f"column {column!r} left out: {value.kind}"
                self.left_out[what] += 1
                self.first.setdefault(what, origin)

    def check(self) -> None:
        """Assert that every row read is accounted for exactly once."""
        accounted = self.trained + self.evaluated + self.dropped.total()
        assert self.read == accounted, f"{self.name}: {self.read} rows read, but {accounted} accounted for"

    def as_dict(self) -> dict[str, Any]:
        """The counts, as in `ledger.json` but without its `rows`."""
        counts: dict[str, Any] = {name: getattr(self, name) for name in _COUNTS}
        dropped = {"dropped": dict(self.dropped), "duplicates": self.dropped[DUPLICATE]}
        left_out = {what: {"rows": count, "first": self.first[what]} for what, count in self.left_out.items()}
        return {**counts, **dropped, "left_out": left_out}

    def summary(self) -> list[tuple[str, int]]:
        """(label, count) for each line of a table, without the optional lines whose count is 0."""
        lines = [("read", self.read), ("to train on", self.trained), ("held out to evaluate on", self.evaluated)]
        lines += [(f"dropped: {reason}", count) for reason, count in self.dropped.most_common()]
        rest = [("used again (weight)", self.repeated), ("cut to the limit", self.truncated),
                ("end-of-sequence token lost", self.eos_lost), ("prompt cut", self.prompt_trimmed)]  # fmt: skip
        rest += self.left_out.most_common()
        return lines + [(label, count) for label, count in rest if count]

    def line(self) -> str:
        """The counts in one line."""
        reasons = ", ".join(f"{count} × {reason}" for reason, count in self.dropped.most_common())
        dropped = f", {self.dropped.total()} dropped ({reasons})" if reasons else ""
        return f"{self.name}: {self.read} rows read, {self.trained} to train on, {self.evaluated} held out{dropped}"

    def _write(self, directory: Path) -> None:
        """Write `ledger.json`, copying its rows from `dropped.jsonl` one at a time."""
        head = json.dumps({**self.as_dict(), "rows": []}, indent=1)
        opening = head.rpartition("]")[0]
        partial = directory / f"{LEDGER_FILE}.partial"
        with partial.open("w", encoding="utf-8") as file, (directory / DROPPED_FILE).open(encoding="utf-8") as dropped:
            file.write(f'{{"sets": {{{json.dumps(self.name)}: {opening}')
            for number, line in enumerate(dropped):
                row = json.loads(line)
                file.write(",\n" if number else "\n")
                json.dump({"origin": row["origin"], "reason": row["reason"]}, file)
            file.write("]}}}\n")
        partial.replace(directory / LEDGER_FILE)

    @classmethod
    def load(cls, directory: Path) -> Ledger:
        """The ledger that was written to a folder: its counts and the first row of each reason."""
        sets = json.loads((directory / LEDGER_FILE).read_text(encoding="utf-8"))["sets"]
        name, counts = next(iter(sets.items()))
        ledger = cls(name)
        for count in _COUNTS:
            setattr(ledger, count, counts[count])
        ledger.dropped = Counter(counts["dropped"])
        for what, of in counts.get("left_out", {}).items():  # the ledger of an older run has none
            ledger.left_out[what], ledger.first[what] = of["rows"], of["first"]
        for row in counts["rows"]:
            ledger.first.setdefault(row["reason"], row["origin"])
        return ledger


def check_left(role: str, ledger: Ledger, holdout: float) -> None:
    """Refuse a set with no row left to train on (or, for prompts, to reply to), and say what became of its rows.

    Args:
        role: The key of the set in `data:`.
        ledger: What became of its rows.
        holdout: Share of prompts that the project holds out.

    Raises:
        UserError: No row is left.
    """
    if ledger.trained or (role == "prompts" and ledger.evaluated):
        return
    reasons = [f"{count} × {reason} (first: {ledger.first[reason]})" for reason, count in ledger.dropped.most_common(3)]
    if ledger.evaluated:
        reasons.insert(0, f"{ledger.evaluated} held out (holdout {holdout})")
        raise UserError(f"no row of data.{role} is left to train on: {', '.join(reasons)}")
    raise UserError(f"every row of data.{role} was dropped: {', '.join(reasons)}")


def too_few(ledger: Ledger, holdout: float) -> list[Finding]:
    """Findings about a set so small that training or measuring on it says little.

    Args:
        ledger: What became of every row.
        holdout: Share of prompts that the project holds out.
    """
    few = "rows are left to train on: a model learns them by heart"
    none = f"rows are trained on and none is held out (holdout {holdout}): there is no held-out loss"
    alone = holdout > 0 and not ledger.evaluated
    return [
        Finding("few", ledger.trained if ledger.trained < _FEW else 0, ledger.read, few),
        Finding("none_held_out", ledger.trained if alone else 0, ledger.read, none),
    ]


def check_classes(classes: Collection[int]) -> None:
    """Check that there are several classes, numbered so that a model can have an output for each.

    Args:
        classes: The classes of the rows to train on, each once.

    Raises:
        UserError: There is only one class, or a class number far exceeds the number of classes.
    """
    if len(classes) < 2:
        raise UserError(f"every row of data.demonstrations has label {min(classes)}: there is nothing to tell apart")
    if max(classes) > max(_GAP, 10 * len(classes)):
        raise UserError(
            f"data.demonstrations has {len(classes)} classes, and labels up to {max(classes)}: number the classes from "
            "0 on"
        )


def none_held_out(role: str, rows: int, holdout: float) -> str:
    """Why no row of a set is held out and how many it would take, as the end of a sentence.

    Args:
        role: The key of the set in `data:`.
        rows: Its rows to train on.
        holdout: Share of prompts that the project holds out.
    """
    if holdout == 0:
        return f"holdout is 0, so data.{role} holds none out"
    enough = math.ceil(3 / holdout)  # (1 - h)^n < exp(-h n): 19 of 20 sets of this size have one
    return f"holdout {holdout} keeps none of the {rows} rows of data.{role} (it takes about {enough})"


def check_limits(limits: LimitsConfig, role: str, ledger: Ledger, findings: Findings) -> None:
    """Refuse a set that exceeds `data.limits`.

    Args:
        limits: The shares allowed.
        role: The key of the set in `data:`.
        ledger: What became of its rows.
        findings: What was found in them.

    Raises:
        UserError: A share is above its limit; the message has each such share, its limit and the first rows.
    """
    faults = {reason: count for reason, count in ledger.dropped.most_common() if reason not in NO_FAULT}
    reasons = ", ".join(f"{reason} {count:,}, first {ledger.first[reason]}" for reason, count in faults.items())
    repeats = f"first {ledger.first[DUPLICATE]}" if DUPLICATE in ledger.first else ""
    problems = []
    for key, limit, count, what in (
        ("dropped", limits.dropped, sum(faults.values()), f"were dropped ({reasons})"),
        ("truncated", limits.truncated, ledger.truncated, "were cut to the length limit"),
        ("eos_lost", limits.eos_lost, ledger.eos_lost, "lost their end-of-sequence token to the length limit"),
        ("duplicates", limits.duplicates, ledger.dropped[DUPLICATE], f"are duplicates ({repeats})"),
    ):
        if limit is not None and count > limit * ledger.read:
            problems.append(f"{count / ledger.read:.1%} of {ledger.read:,} rows {what}, {_allows(key, limit)}")
    for key, limit in (
        ("near_duplicates", limits.near_duplicates),
        ("contradictory", limits.contradictory),
        ("conflicting", limits.conflicting),
        ("leaked", limits.leaked),
        ("markers", limits.markers),
        ("undecodable", limits.undecodable),
        ("other_language", limits.other_language),
    ):
        finding = findings.get(key)
        if limit is not None and finding is not None and finding.share > limit:
            problems.append(f"{finding.line()}, {_allows(key, limit)}")
    if problems:
        raise UserError(f"data.{role}: {'; '.join(problems)}")


def _allows(key: str, limit: float) -> str:
    return f"data.limits.{key} allows {100 * limit:g}%"


def fault(record: Record) -> str | None:
    """Why nothing can be learned from a record, or None if it is fine.

    * `empty side`: a completion without text, or without a message from the assistant.
    * `identical`: both completions are the same apart from surrounding white space.
    * `empty prompt`: nothing to reply to (a demonstration in plain text may lack a prompt, one in messages may not).
    * `empty text`: nothing to classify.
    * `broken Unicode`: half a surrogate pair, which neither tokenizers nor UTF-8 files can represent.
    """
    if isinstance(record, Labelled):
        return _broken([record.text, record.extra]) or (None if record.text.strip() else "empty text")
    sides = completions(record)
    if any(map(_is_empty, sides)):
        return "empty side"
    if len(sides) == 2 and canonical(sides[0]) == canonical(sides[1]):
        return IDENTICAL
    if record.prompt == [] or (not isinstance(record, Demonstration) and _empty_prompt(record.prompt)):
        return "empty prompt"
    return _broken([record.prompt, *sides, record.extra])


def row_key(record: Record) -> bytes:
    """A 16-byte digest, equal for records with the same prompt, completions and label apart from outer white space."""
    parts = [type(record).__name__]
    if isinstance(record, Labelled):
        parts += [record.text.strip(), str(record.label)]
    else:
        parts += [canonical(text) for text in (record.prompt, *completions(record))]
    if isinstance(record, Feedback):
        parts.append(str(record.label))
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


def _is_empty(completion: Text) -> bool:
    if isinstance(completion, str):
        return not completion.strip()
    contents = [message["content"] for message in completion if message["role"] == "assistant"]
    return not contents or not all(content.strip() for content in contents)


def _empty_prompt(prompt: Text) -> bool:
    if isinstance(prompt, str):
        return not prompt.strip()
    return not any(message["role"] != "system" and message["content"].strip() for message in prompt)


def _broken(content: Any) -> str | None:
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "broken Unicode"
    return None
