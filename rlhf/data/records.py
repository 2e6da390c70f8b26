"""What a row can be once its layout is known, and what a role makes of it.

A prompt is plain text or messages, and its completions are of the same kind. Each record carries the row's other
columns in `extra` (reward functions take them) and where it came from in `origin` (`file.jsonl:12` is line 12,
`file.parquet#12` row 12).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlhf.errors import UserError

Message = dict[str, str]
"""`{"role": …, "content": …}`."""

Text = str | list[Message]
"""Plain text, or a conversation."""

ROLES = ("demonstrations", "preferences", "prompts", "rollouts")
"""What a set can be for: the keys of `data:` in a project."""


class Unusable(Exception):
    """A row that nothing can be learned from; the ledger counts it under `reason` and the run goes on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A reply to imitate. Of several turns, `prompt` reaches up to the first reply and `completion` holds the rest."""

    prompt: Text
    completion: Text
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two replies to one prompt, the first preferred. In a conversation each is one assistant message, or none."""

    prompt: Text
    chosen: Text
    rejected: Text
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Feedback:
    """One reply, judged good (`label` true) or bad."""

    prompt: Text
    completion: Text
    label: bool
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Something to reply to."""

    prompt: Text
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its class, for an encoder."""

    text: str
    label: int
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


Record = Demonstration | Preference | Feedback | Prompt | Labelled


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record as the columns a trainer reads, and what was lost on the way."""

    columns: dict[str, Any]
    truncated: bool = False
    """Tokens were cut to stay within the limit."""
    eos_lost: bool = False
    """The cut took the end-of-sequence token, so that this row does not teach to stop."""
    prompt_trimmed: bool = False
    """The cut took tokens of the prompt."""


def demonstration_of(messages: list[Message], extra: dict[str, Any], origin: str) -> Demonstration:
    """A conversation as a demonstration, parted before its first reply.

    What follows the last reply carries no loss and is left out.

    Raises:
        Unusable: The conversation begins with the assistant: there is nothing it replies to.
    """
    replies = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not replies:
        return Demonstration(messages, [], extra, origin)
    if replies[0] == 0:
        raise Unusable("starts with the assistant")
    return Demonstration(messages[: replies[0]], messages[replies[0] : replies[-1] + 1], extra, origin)


def as_role(record: Record, role: str) -> Record:
    """A record as a role reads it.

    Demonstrations take a demonstration, a preference (its chosen side), feedback labelled true, and labelled text;
    preferences take preferences; prompts take the prompt of anything.

    Raises:
        Unusable: Feedback labelled false, as a demonstration.
        UserError: This kind of record cannot serve in this role.
    """
    try:
        convert = _CONVERSIONS[role]
    except KeyError:
        raise ValueError(f"unknown role {role!r}: expected one of {', '.join(ROLES)}") from None
    return convert(record)


def _as_demonstration(record: Record) -> Record:
    match record:
        case Demonstration() | Labelled():
            return record
        case Preference():
            return Demonstration(record.prompt, record.chosen, record.extra, record.origin)
        case Feedback():
            if not record.label:
                raise Unusable("negative feedback")
            return Demonstration(record.prompt, record.completion, record.extra, record.origin)
        case _:
            raise _refusal(record, "demonstrations")


def _as_preference(record: Record) -> Record:
    if isinstance(record, Preference):
        return record
    raise _refusal(record, "preferences")


def _as_prompt(record: Record) -> Record:
    if isinstance(record, Prompt):
        return record
    return Prompt(record.text if isinstance(record, Labelled) else record.prompt, record.extra, record.origin)


def _refusal(record: Record, role: str) -> UserError:
    what, instead = {
        Demonstration: ("a demonstration (one reply, nothing to compare it with)", "demonstrations or prompts"),
        Feedback: ("binary feedback (one reply and its label, nothing to compare it with)",
                   "demonstrations (the rows labelled true) or prompts"),
        Prompt: ("a prompt without a reply", "prompts"),
        Labelled: ("a labelled text", "demonstrations (of an encoder) or prompts"),
    }[type(record)]  # fmt: skip
    return UserError(f"{record.origin}: data.{role} got {what}; it can serve as {instead}")


_CONVERSIONS: dict[str, Callable[[Record], Record]] = {
    "demonstrations": _as_demonstration,
    "preferences": _as_preference,
    "prompts": _as_prompt,
    "rollouts": _as_prompt,
}
