"""What a row can be once its layout is known, and what each role reads from it.

A prompt is plain text or messages, and its completions are of the same kind. Each record has the row's other columns in
`extra`, for reward functions, and in `origin` where it came from: `file.jsonl:12` is line 12, `file.parquet#12` row 12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf.errors import UserError

Message = dict[str, str]
"""`{"role": …, "content": …}`."""

Text = str | list[Message]
"""Plain text, or a conversation."""


class Image(str):
    """A text that names an image: the path of a file, or a data URI (`data:image/png;base64,…`)."""

    __slots__ = ()


ROLES = ("demonstrations", "preferences", "feedback", "prompts", "rollouts")
"""What a set can be used for: the keys of `data:` in a project."""


class Unusable(Exception):
    """Nothing can be learned from a row; the ledger counts it under `reason` and the run goes on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A completion to imitate. If the assistant speaks several times, `prompt` ends before its first turn."""

    prompt: Text
    completion: Text
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions of a prompt, the first preferred. In messages each is a single assistant message, or none."""

    prompt: Text
    chosen: Text
    rejected: Text
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Feedback:
    """A completion that was judged good (`label` true) or bad."""

    prompt: Text
    completion: Text
    label: bool
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt alone."""

    prompt: Text
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    context: str = ""
    """The text that the prompt asks about, where it asks about one: prompts about it are all held out, or none is."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text or an image and the names of its classes: one, or with `multi` any number of them at once."""

    text: str
    labels: tuple[str, ...]
    multi: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Spanned:
    """A question about a text and where the text answers it."""

    context: str
    question: str
    answers: tuple[tuple[int, int], ...]
    """Spans of characters of the context, each [start, end): answers that are equally right. None: no answer."""
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""

    @property
    def prompt(self) -> str:
        """Question and context as one text."""
        return f"{self.question}\n\n{self.context}"


Record = Demonstration | Preference | Feedback | Prompt | Labelled | Spanned


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record as the columns that a trainer reads, and what was cut off."""

    columns: dict[str, Any]
    truncated: bool = False
    """Whether tokens were cut to stay within the limit."""
    eos_lost: bool = False
    """Whether the end-of-sequence token was cut, so that this row does not teach when to stop."""
    prompt_trimmed: bool = False
    """Whether tokens of the prompt were cut."""


def demonstration_of(messages: list[Message], extra: dict[str, Any], origin: str) -> Demonstration:
    """A conversation as a demonstration, split before the assistant's first turn.

    Turns after the assistant's last one would carry no loss and are left out.

    Raises:
        Unusable: The conversation begins with the assistant, so there is no prompt.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return Demonstration(messages, [], extra, origin)
    if turns[0] == 0:
        raise Unusable("starts with the assistant")
    return Demonstration(messages[: turns[0]], messages[turns[0] : turns[-1] + 1], extra, origin)


def as_role(record: Record, role: str) -> Record:
    """A record as a role reads it.

    Demonstrations take a demonstration, a preference (its chosen side), feedback labelled true, labelled text, and
    answers in a text; preferences take preferences; feedback takes feedback and preferences, which are two judgements
    each; prompts take the prompt of anything. What the record knows about the right completion goes to the extra
    columns of a prompt: `label` (a name, or a list of several), `question`, `context` and `answers` (as in SQuAD), or
    `reference`, the completion of a demonstration in plain text.

    Raises:
        Unusable: Feedback labelled false, as a demonstration.
        UserError: This kind of record cannot serve in this role.
    """
    try:
        convert = _CONVERSIONS[role]
    except KeyError:
        raise ValueError(f"unknown role {role!r}: expected one of {', '.join(ROLES)}") from None
    return convert(record)


def as_completion(prompt: Text, text: str) -> Text:
    """A completion's text in the form of its prompt, as reward functions take it.

    To a prompt of plain text it is plain text as it is, since it goes on where the prompt ends; to a conversation it is
    a message of the assistant.
    """
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text.strip()}]


def as_conversation(prompt: Text) -> list[Message]:
    """A prompt as turns of a conversation; plain text is what a user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def as_chat(record: Record) -> Record:
    """A record of plain text as a conversation; one of messages, a class or a span is returned as it is.

    The prompt becomes what the user says, after the column `system` if that is text, and each completion what the
    assistant replies.

    Raises:
        Unusable: There is no prompt to reply to.
    """
    if isinstance(record, Labelled | Spanned) or not isinstance(record.prompt, str):
        return record
    if not record.prompt.strip():
        raise Unusable("empty prompt")
    system = record.extra.get("system")
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    prompt = [*first, {"role": "user", "content": record.prompt.strip()}]
    extra = {column: value for column, value in record.extra.items() if column != "system"} if first else record.extra
    sides = {
        side: as_completion(prompt, text)
        for side in ("completion", "chosen", "rejected")
        if isinstance(text := getattr(record, side, None), str)
    }
    return replace(record, prompt=prompt, extra=extra, **sides)  # type: ignore[arg-type]  # each has its sides


def _as_demonstration(record: Record) -> Record:
    match record:
        case Demonstration() | Labelled() | Spanned():
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


def _as_feedback(record: Record) -> Record:
    if isinstance(record, Feedback | Preference):
        return record
    raise _refusal(record, "feedback")


def _as_prompt(record: Record) -> Record:
    match record:
        case Prompt():
            return record
        case Labelled():
            label = list(record.labels) if record.multi else record.labels[0]
            return Prompt(record.text, {**record.extra, "label": label}, record.origin)
        case Spanned():
            texts = [record.context[start:end] for start, end in record.answers]
            answers = {"text": texts, "answer_start": [start for start, _ in record.answers]}
            columns = {"question": record.question, "context": record.context, "answers": answers}
            return Prompt(record.prompt, {**record.extra, **columns}, record.origin, record.context)
        case Demonstration(completion=str(completion)):
            return Prompt(record.prompt, {"reference": completion, **record.extra}, record.origin)
        case _:
            return Prompt(record.prompt, record.extra, record.origin)


def _refusal(record: Record, role: str) -> UserError:
    what, instead = {
        Demonstration: ("a demonstration (one reply, nothing to compare it with)", "demonstrations or prompts"),
        Feedback: ("binary feedback (one reply and its label, nothing to compare it with)",
                   "feedback, demonstrations (the rows labelled true) or prompts"),
        Prompt: ("a prompt without a reply", "prompts"),
        Labelled: ("a labelled text or image", "demonstrations (of a classifier) or prompts"),
        Spanned: ("a question about a text", "demonstrations (of a model that marks the answer) or prompts"),
    }[type(record)]  # fmt: skip
    return UserError(f"{record.origin}: data.{role} got {what}; it can serve as {instead}")


_CONVERSIONS: dict[str, Callable[[Record], Record]] = {
    "demonstrations": _as_demonstration,
    "preferences": _as_preference,
    "feedback": _as_feedback,
    "prompts": _as_prompt,
    "rollouts": _as_prompt,
}
