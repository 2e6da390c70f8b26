"""Findings: what misleads training or evaluation although every row of a set is usable."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.durable import written_whole
from rlhf.errors import UserError

FINDINGS_FILE = "findings.json"

KINDS = (
    "few",
    "none_held_out",
    "contradictory",
    "leaked",
    "markers",
    "undecodable",
    "other_language",
    "conflicting",
    "near_duplicates",
    "length",
    "length_tokens",
)
"""All kinds of findings, most severe first."""


@dataclass(frozen=True)
class Finding:
    """The result of looking for one kind of problem."""

    kind: str
    """One of KINDS."""
    count: int
    """Number of rows, pairs or prompts that have the problem."""
    n: int
    """Number of rows, pairs or prompts examined."""
    text: str
    """What the problem is and what it does, as the rest of a sentence that begins with the count."""
    examples: tuple[tuple[str, ...], ...] = ()
    """Origins of the first rows; where two rows match, of both."""
    ci: tuple[float, float] | None = None
    """95% interval of the share, where the rows are a sample of something larger."""
    values: dict[str, float] = field(default_factory=dict)
    """Further numbers, by name."""
    said: bool = True
    """Whether it is worth reporting."""

    @property
    def share(self) -> float:
        """The count as a share of n, in [0, 1]; 0 of none."""
        return self.count / self.n if self.n else 0.0

    def line(self) -> str:
        """One sentence."""
        interval = f" [{_percent(self.ci[0])}, {_percent(self.ci[1])}]" if self.ci else ""
        examples = f" (first: {' and '.join(self.examples[0])})" if self.examples else ""
        return f"{self.count:,} of {self.n:,} ({_percent(self.share)}{interval}) {self.text}{examples}"

    def as_dict(self) -> dict[str, Any]:
        """The fields and the share, for JSON."""
        return {
            "kind": self.kind,
            "count": self.count,
            "n": self.n,
            "share": self.share,
            "ci": list(self.ci) if self.ci else None,
            "values": self.values,
            "examples": [list(example) for example in self.examples],
            "said": self.said,
            "text": self.text,
        }

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Finding:
        """The finding that `as_dict` wrote."""
        return cls(
            entry["kind"],
            entry["count"],
            entry["n"],
            entry["text"],
            tuple(tuple(example) for example in entry["examples"]),
            tuple(entry["ci"]) if entry["ci"] else None,  # type: ignore[arg-type]  # two numbers
            entry["values"],
            entry["said"],
        )


@dataclass(frozen=True)
class Findings:
    """Everything that was looked for in a set, found or not."""

    name: str
    """The set: demonstrations, preferences or prompts."""
    entries: tuple[Finding, ...] = ()
    """A finding of each kind that applies to the set, most severe first."""

    def get(self, kind: str) -> Finding | None:
        """The finding of a kind; None if the kind does not apply to the set."""
        return next((entry for entry in self.entries if entry.kind == kind), None)

    def lines(self) -> list[str]:
        """A sentence for each finding worth reporting, most severe first."""
        return [entry.line() for entry in self.entries if entry.said and entry.count]

    def as_dict(self) -> dict[str, Any]:
        """The content of `findings.json`."""
        return {"set": self.name, "findings": [entry.as_dict() for entry in self.entries]}

    def save(self, directory: Path) -> None:
        """Write `findings.json`, whole or not at all."""
        with written_whole(directory / FINDINGS_FILE) as partial:
            partial.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Findings:
        """The findings of a folder.

        Raises:
            UserError: The file cannot be read, or is damaged.
        """
        path = directory / FINDINGS_FILE
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
            return cls(written["set"], tuple(Finding.from_dict(entry) for entry in written["findings"]))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise UserError(f"{path}: not a file of findings; delete {directory} to prepare the data again") from None


def ordered(name: str, entries: Iterable[Finding]) -> Findings:
    """Findings of a set, in the order of KINDS."""
    return Findings(name, tuple(sorted(entries, key=lambda entry: KINDS.index(entry.kind))))


def _percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%"
