"""How the rows of a file are read: what they are, in which format, and which of their columns mean what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf.config.sets import SourceConfig

Kind = Literal["preferences", "feedback", "demonstrations", "labels", "spans", "prompts", "text"]
"""What rows are; `WORDS` says it."""

WORDS: dict[str, str] = {
    "preferences": "pairs of a better and a worse reply",
    "feedback": "replies that were judged good or bad",
    "demonstrations": "replies to imitate",
    "labels": "texts with their classes",
    "spans": "questions with the place of their answer in a text",
    "prompts": "prompts without a reply",
    "text": "plain text",
}
"""What a kind of rows is called."""


@dataclass(frozen=True)
class Reading:
    """What a file's rows are, and the settings of its source with which they are read so."""

    kind: Kind
    format: str
    columns: dict[str, str] = field(default_factory=dict)
    """As in `SourceConfig`."""
    values: dict[str, dict[Any, Any]] = field(default_factory=dict)
    """As in `SourceConfig`."""
    chat: bool = False
    """As in `SourceConfig`."""
    known: bool = True
    """Whether the format was recognised as the rows are; else the columns were matched by their names."""

    def source(self, path: str, **fields: Any) -> SourceConfig:
        """The source of a project that reads a file so."""
        return SourceConfig(
            source=path, format=self.format, columns=self.columns, values=self.values, chat=self.chat, **fields
        )

    def settings(self) -> dict[str, Any]:
        """The settings besides the path that the YAML has to name."""
        named: dict[str, Any] = {} if self.known and not self.chat else {"format": self.format}
        fields = {"columns": self.columns, "values": self.values, "chat": self.chat}
        return named | {key: value for key, value in fields.items() if value}


KIND_OF_FORMAT: dict[str, Kind] = {
    "hh": "preferences", "preference": "preferences", "ultrafeedback": "preferences", "llmbar": "preferences",
    "helpsteer3": "preferences", "kto": "feedback",
    "labelled": "labels", "images": "labels", "squad": "spans", "restaurant8k": "spans",
    "prompt_only": "prompts", "text": "text",
}  # fmt: skip
"""What the rows of a format are; of every other format they are demonstrations."""


def kind_of(layout: str) -> Kind:
    """What the rows of a format are."""
    return KIND_OF_FORMAT.get(layout, "demonstrations")
