"""The ledger of a set, which accounts for every row that was read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from rlhf.data.plain import Opaque
from rlhf.durable import written_whole
from rlhf.errors import UserError

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
COMPARED = "prompt of the final comparison"
"""Reason of rows of a source that is all trained on, such as votes, which may not have these prompts."""
ALL_TRAINED = "prompt voted on"
"""Reason of held-out rows whose prompt is trained on all the same, since a source that is all trained on has it."""
NOT_ASKED = "not among the prompts asked for"
"""Reason of prompts beyond the number that a stage replies to; not kept."""
NO_FAULT = frozenset({
    DUPLICATE, SAME_PROMPT, HELD_OUT, COMPARED, ALL_TRAINED, SAMPLED_OUT, OTHER_HALF, NEGATIVE, NOT_ASKED,
})  # fmt: skip
"""Reasons for leaving out rows that have nothing wrong with them."""

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
        if self.directory is not None and reason not in (SAMPLED_OUT, OTHER_HALF, SAME_PROMPT, NOT_ASKED):
            self._file.write(json.dumps({"origin": origin, "reason": reason, "row": row}, default=str) + "\n")

    def take_over(self, source: Path) -> None:
        """Take the account of a folder over, but for the rows to train on, which are still to be accounted for."""
        earlier = Ledger.load(source)
        for count in _COUNTS:
            setattr(self, count, getattr(earlier, count))
        self.trained = 0
        self.dropped, self.left_out, self.first = earlier.dropped, earlier.left_out, earlier.first
        with (source / DROPPED_FILE).open(encoding="utf-8") as dropped:
            self._file.writelines(dropped)

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
        with (
            written_whole(directory / LEDGER_FILE) as partial,
            partial.open("w", encoding="utf-8") as file,
            (directory / DROPPED_FILE).open(encoding="utf-8") as dropped,
        ):
            file.write(f'{{"sets": {{{json.dumps(self.name)}: {opening}')
            for number, line in enumerate(dropped):
                row = json.loads(line)
                file.write(",\n" if number else "\n")
                json.dump({"origin": row["origin"], "reason": row["reason"]}, file)
            file.write("]}}}\n")

    @classmethod
    def load(cls, directory: Path) -> Ledger:
        """The ledger that was written to a folder: its counts and the first row of each reason.

        Raises:
            UserError: The file cannot be read, or is damaged.
        """
        path = directory / LEDGER_FILE
        try:
            return cls._from(json.loads(path.read_text(encoding="utf-8"))["sets"])
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        except (AttributeError, KeyError, RecursionError, StopIteration, TypeError, ValueError):
            raise UserError(f"{path}: not a file of counts; delete {directory} to prepare the data again") from None

    @classmethod
    def _from(cls, sets: dict[str, Any]) -> Ledger:
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
