"""Matches the columns of rows that fit no format, by their names and by what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.data.formats import formats
from rlhf.data.records import Unusable
from rlhf.data.sources import value_name
from rlhf.errors import UserError
from rlhf.init.reading import Reading, kind_of

Row = dict[str, Any]

PROMPT = ("prompt", "question", "instruction", "query", "input", "user", "request", "problem", "ask", "human", "ticket",
          "message", "post", "task", "title", "context")  # fmt: skip
REPLY = ("completion", "response", "answer", "reply", "output", "assistant", "solution", "generation", "target", "gpt",
         "summary")  # fmt: skip
CHOSEN = ("chosen", "preferred", "accepted", "good", "better", "winning", "positive", "win", "best", "y_w", "pos")
REJECTED = ("rejected", "dispreferred", "bad", "worse", "losing", "negative", "lose", "worst", "y_l", "neg")
TEXT = ("text", "sentence", "review", "utterance", "content", "comment", "body", "message", "document", "query",
        "question", "description")  # fmt: skip
LABEL = ("label", "labels", "category", "class", "intent", "sentiment", "topic", "tag", "emotion", "target")
RATING = ("rating", "stars", "score", "thumbs", "thumb", "feedback", "vote", "label", "quality", "helpful", "liked",
          "like", "grade", "good", "is_good", "correct", "accepted", "reward", "csat", "satisfaction")  # fmt: skip
WINNER = ("winner", "preference", "preferred", "choice", "better", "label", "chosen", "best", "verdict", "vote")
TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns")
SYSTEM = ("system", "system_prompt", "system_message")
SIDES = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second"), ("one", "two"))
"""What tells the columns of two replies apart."""

_WHOLE = {"input", "user", "human", "message", "post", "task", "title", "context", "gpt", "target", "content", "body",
          "good", "bad", "best", "win", "lose", "like", "class", "tag", "pos", "neg", "text"}  # fmt: skip
"""Names that say nothing as a part of another name: `user_id`, `human_ref_A`."""

_GOOD = {"true", "yes", "1", "up", "good", "thumbs_up", "thumbsup", "positive", "liked", "like", "helpful", "correct",
         "accept", "accepted", "pass", "👍", "+1"}  # fmt: skip
_BAD = {"false", "no", "0", "-1", "down", "bad", "thumbs_down", "thumbsdown", "negative", "disliked", "dislike",
        "unhelpful", "wrong", "incorrect", "reject", "rejected", "fail", "👎"}  # fmt: skip
_FLAGS = {"true", "false", "yes", "no", "1", "0"}
"""Judgements that need no translation."""
_TIE = re.compile(r"tie|both|neither|equal|same|draw|none|null|bothbad|.*\(bothbad\)")
_ENDS_IN_A_MARK = re.compile(r"(:|\[/INST\]|<\|[^|]*\|>|assistant|TL;DR|[>#])\s*$", re.IGNORECASE)
_FIRST_ROWS, _MOST_CLASSES, _MOST_RATINGS = 500, 500, 32
_LONG = 60
"""Characters that a class's name has at most."""


@dataclass
class Sample:
    """What is remembered of a source's rows: the first ones, and the values of columns that have few."""

    rows: list[Row] = field(default_factory=list)
    count: int = 0
    """Rows that were read."""
    values: dict[str, set[str]] = field(default_factory=dict)
    """Column: its values by name (`value_name`); without columns that hold more than a class or a rating."""
    _dropped: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        """Remember a row."""
        self.count += 1
        if len(self.rows) < _FIRST_ROWS:
            self.rows.append(row)
        for column, cell in row.items():
            if column in self._dropped or cell is None or cell == "":
                continue
            names = self.values.setdefault(column, set())
            if isinstance(cell, str | int | float) and len(str(cell)) <= 2 * _LONG and len(names) <= _MOST_CLASSES:
                names.add(value_name(cell))
            else:
                self._dropped.add(column)
                del self.values[column]


def propose(sample: Sample, good: Iterable[str] = ()) -> Reading | None:
    """How rows can be read; None where that cannot be told.

    What says more about a reply comes first: pairs before judgements, judgements before single replies, and those
    before prompts. A format that the rows have as they are is taken unless their columns say more than it reads.

    Args:
        sample: What was read of a source, at least a row.
        good: Values of a rating that are good, where the user named them.
    """
    recognised = _recognised(sample)
    tries = (_pairs, _two_and_winner, lambda sample: _rated(sample, good), _turns, _replies, _classes, _prompts)
    for attempt in tries:
        if (reading := attempt(sample)) is None:
            continue
        if recognised is not None and _rank(recognised.kind) <= _rank(reading.kind) and _parses(recognised, sample):
            return with_chat(recognised, sample)
        return with_chat(reading, sample)
    return None if recognised is None else with_chat(recognised, sample)


def _rank(kind: str) -> int:
    return ("preferences", "spans", "feedback", "labels", "demonstrations", "text", "prompts").index(kind)


def _parses(reading: Reading, sample: Sample) -> bool:
    """Whether the first row has all that the format needs; else its columns may have slightly other names."""
    try:
        formats()[reading.format].records(sample.rows[0], "")
    except UserError:
        return False
    except Unusable:
        return True
    return True


def _recognised(sample: Sample) -> Reading | None:
    """The format that most of the rows have as they are."""
    for name, layout in formats().items():
        if sum(map(layout.matches, sample.rows)) * 2 > len(sample.rows):
            first = next((other for other, known in formats().items() if known.matches(sample.rows[0])), None)
            return Reading(kind_of(name), name, known=first == name)
    return None


def ratings(sample: Sample) -> tuple[str, list[str]] | None:
    """The column that rates replies, and its values, where it is not plain which are good; None where it is.

    Where the rows are pairs, or a format reads them as they are, no such column is asked about.

    Args:
        sample: What was read of a source.
    """
    rating, recognised = _rating_column(sample), _recognised(sample)
    if rating is None or _pairs(sample) is not None or _two_and_winner(sample) is not None:
        return None
    if recognised is not None and _rank(recognised.kind) <= _rank("feedback") and _parses(recognised, sample):
        return None
    column, values = rating
    return None if _meanings(values, ()) is not None else (column, values)


def _pairs(sample: Sample) -> Reading | None:
    """A better and a worse reply, by the names of their columns."""
    for chosen in _named(sample, CHOSEN):
        for rejected in _named(sample, REJECTED):
            if chosen == rejected or not _same_shape(sample, chosen, rejected):
                continue
            prompt = _first(sample, PROMPT, besides=(chosen, rejected)) if _is_text(sample, chosen) else None
            columns = _changed(sample, {"prompt": prompt, "chosen": chosen, "rejected": rejected})
            return Reading("preferences", _layout(sample, columns), columns, known=False)
    return None


def _layout(sample: Sample, columns: dict[str, str]) -> str:
    """The layout of pairs once their columns are renamed: transcripts, whole conversations, or plain."""
    rows = [row | {ours: row.get(theirs) for ours, theirs in columns.items()} for row in sample.rows]
    for name in ("hh", "ultrafeedback"):
        if sum(map(formats()[name].matches, rows)) * 2 > len(rows):
            return name
    return "preference"


def _two_and_winner(sample: Sample) -> Reading | None:
    """Two replies side by side, and which of them is better."""
    for first, second, sides in _side_by_side(sample):
        for winner in _named(sample, WINNER):
            values = _values(sample, winner)
            meanings = {value: _winner(value, (first, second), sides) for value in values}
            if winner in (first, second) or not values or ... in meanings.values():
                continue
            prompt = _first(sample, PROMPT, besides=(first, second, winner))
            if prompt is None or not {1, 2} & set(meanings.values()):
                continue
            columns = _changed(sample, {"input": prompt, "output_1": first, "output_2": second, "label": winner})
            same = all(value_name(meaning) == value for value, meaning in meanings.items())
            return Reading("preferences", "llmbar", columns, {} if same else {"label": meanings}, known=False)
    return None


def _side_by_side(sample: Sample) -> list[tuple[str, str, tuple[str, str]]]:
    """Columns of text that differ in what stands for the side."""
    columns = [column for column in _columns(sample) if _is_text(sample, column)]
    twins = []
    for sides in SIDES:
        for column in columns:
            parts = re.split(r"([_\-. ]|(?<=[a-z])(?=[A-Z0-9]))", column)
            for place, part in enumerate(parts):
                if part and part.lower() == sides[0]:
                    other = sides[1].title() if part.istitle() else sides[1]
                    twin = "".join([*parts[:place], other, *parts[place + 1 :]])
                    if twin in columns and twin != column:
                        twins.append((column, twin, sides))
    return twins


def _winner(value: str, columns: tuple[str, str], sides: tuple[str, str]) -> Any:
    """1 or 2 for the better side, None for a tie, `...` for what cannot be told."""
    word = value.lower().strip()
    for number, (column, side) in enumerate(zip(columns, sides, strict=True), 1):
        if word in (column.lower(), side) or re.split(r"[_\-. ]", word)[-1] == side:
            return number
    return None if _TIE.fullmatch(word.replace(" ", "")) else ...


def _rated(sample: Sample, good: Iterable[str]) -> Reading | None:
    """Replies with a rating each."""
    rating = _rating_column(sample)
    if rating is None:
        return None
    column, values = rating
    meanings = _meanings(values, tuple(good))
    if meanings is None:
        return None
    reply = _first(sample, REPLY, besides=(column,))
    prompt = _first(sample, PROMPT, besides=(column, reply))
    plain = {value.lower() for value in values} <= _FLAGS
    columns = _changed(sample, {"prompt": prompt, "completion": reply, "label": column, **_system(sample)})
    return Reading("feedback", "kto", columns, {} if plain else {"label": meanings}, known=False)


def _rating_column(sample: Sample) -> tuple[str, list[str]] | None:
    """The column that rates a reply beside it, and its values in order."""
    for column in _named(sample, RATING):
        reply = _first(sample, REPLY, besides=(column,))
        prompt = _first(sample, PROMPT, besides=(column, reply)) if reply is not None else None
        values = _values(sample, column)
        scale = all(_is_number(value) for value in values) or {value.lower() for value in values} <= _GOOD | _BAD
        if prompt is not None and scale and 2 <= len(values) <= _MOST_RATINGS:
            return column, values
    return None


def _meanings(values: Sequence[str], good: tuple[str, ...]) -> dict[Any, Any] | None:
    """What ratings stand for; None where nobody has said which are good."""
    if {value.lower() for value in values} <= _GOOD | _BAD:
        return {value: value.lower() in _GOOD for value in values}
    if not good:
        return None
    if len(good) == 1 and _is_number(good[0]) and all(map(_is_number, values)):
        return {value: float(value) >= float(good[0]) for value in values}
    named = {value_name(word) for word in good}
    return {value: value in named for value in values}


def _turns(sample: Sample) -> Reading | None:
    """Whole conversations, under any name."""
    for column in dict.fromkeys((*_named(sample, TURNS), *_columns(sample))):
        if not _ends_in_a_reply(sample, column):
            continue
        for ours in ("messages", "conversations"):
            layout = formats()["messages" if ours == "messages" else "sharegpt"]
            if sum(layout.matches({ours: row.get(column)}) for row in sample.rows) * 2 > len(sample.rows):
                return Reading("demonstrations", layout.name, _changed(sample, {ours: column}), known=False)
    return None


def _ends_in_a_reply(sample: Sample, column: str) -> bool:
    """Whether a column holds turns of which the last is not the user's in most rows."""
    lasts = [cell[-1] for row in sample.rows if isinstance(cell := row.get(column), list) and cell]
    speakers = [str(last.get("role", last.get("from"))) for last in lasts if isinstance(last, dict)]
    return sum(speaker not in ("user", "human", "None") for speaker in speakers) * 2 > len(sample.rows)


def _replies(sample: Sample) -> Reading | None:
    """A prompt and a reply to it."""
    instruction = _first(sample, ("instruction",))
    if instruction is not None and _is_text(sample, "input") and _is_text(sample, "output"):
        return Reading("demonstrations", "alpaca")
    reply = _first(sample, REPLY)
    prompt = _first(sample, PROMPT, besides=(reply,)) if reply is not None else None
    if reply is None or prompt is None:
        return None
    columns = _changed(sample, {"prompt": prompt, "completion": reply, **_system(sample)})
    return Reading("demonstrations", "prompt_completion", columns, known=False)


def _system(sample: Sample) -> dict[str, str | None]:
    return {"system": _first(sample, SYSTEM)}


def _classes(sample: Sample) -> Reading | None:
    """A text and its class: few and short values beside it."""
    for label in _named(sample, LABEL):
        text = _first(sample, TEXT, besides=(label,))
        values = _values(sample, label)
        few = 2 <= len(values) <= min(_MOST_CLASSES, max(2, sample.count // 2))
        if text is not None and few and all(len(value) <= _LONG for value in values):
            return Reading("labels", "labelled", _changed(sample, {"text": text, "label": label}), known=False)
    return None


def _prompts(sample: Sample) -> Reading | None:
    """Prompts alone."""
    prompt = _first(sample, PROMPT)
    if prompt is None:
        return None
    return Reading("prompts", "prompt_only", _changed(sample, {"prompt": prompt}), known=False)


def with_chat(reading: Reading, sample: Sample) -> Reading:
    """The reading, of plain prompts that do not say where a reply begins as a conversation."""
    if reading.format not in ("preference", "kto", "prompt_completion", "prompt_only"):
        return reading
    prompts = [row.get(reading.columns.get("prompt", "prompt")) for row in sample.rows]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    replies = [row.get(reading.columns.get(side, side)) for row in sample.rows for side in ("completion", "chosen")]
    spaced = [reply for reply in replies if isinstance(reply, str) and reply[:1].isspace()]
    marked = [text for text in texts if _ENDS_IN_A_MARK.search(text) or text[-1:].isspace()]
    chat = len(texts) * 2 > len(sample.rows) and max(len(marked), len(spaced)) * 2 < len(texts)
    return Reading(reading.kind, reading.format, reading.columns, reading.values, chat, reading.known)


def _changed(sample: Sample, columns: dict[str, str | None]) -> dict[str, str]:
    """The columns that have another name in the file; one that would be replaced is kept under another name."""
    changed = {ours: theirs for ours, theirs in columns.items() if theirs is not None and ours != theirs}
    present = _columns(sample)
    replaced = [ours for ours in changed if ours in present and ours not in changed.values()]
    return changed | {f"other_{ours}": ours for ours in replaced}


def _columns(sample: Sample) -> list[str]:
    return list(dict.fromkeys(str(column) for row in sample.rows for column in row))


def _named(sample: Sample, names: Sequence[str]) -> list[str]:
    """The columns that have one of these names, or one of them as a word; whole names first, in the names' order."""
    columns = _columns(sample)
    whole = [column for name in names for column in columns if _plain(column) == name]
    strong = [name for name in names if name not in _WHOLE]
    parts = [column for name in strong for column in columns if name in re.split(r"[_\-. ]", _plain(column))]
    return list(dict.fromkeys([*whole, *parts]))


def _plain(column: str) -> str:
    """A column's name in small letters, with its words apart: `bestAnswer` as `best_answer`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column.strip()).lower().replace(" ", "_")


def _first(sample: Sample, names: Sequence[str], besides: Sequence[str | None] = ()) -> str | None:
    """The first column of text that has one of these names."""
    return next((name for name in _named(sample, names) if name not in besides and _is_text(sample, name)), None)


def _is_text(sample: Sample, column: str) -> bool:
    """Whether most rows have text in a column; numbers as text do not count."""
    cells = [row.get(column) for row in sample.rows]
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip() and not _is_number(cell)]
    return len(texts) * 2 > len(sample.rows)


def _same_shape(sample: Sample, first: str, second: str) -> bool:
    """Whether most rows have text in both columns, or messages in both."""
    kinds = [(type(row.get(first)), type(row.get(second))) for row in sample.rows]
    alike = [left for left, right in kinds if left is right and left in (str, list)]
    return len(alike) * 2 > len(sample.rows) and (list in alike or _is_text(sample, first))


def _values(sample: Sample, column: str) -> list[str]:
    """The values of a column of words or numbers, numbers in order; none where it holds anything else."""
    names = sample.values.get(column, set())
    return sorted(names, key=lambda name: (not _is_number(name), float(name) if _is_number(name) else 0.0, name))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?[0-9]{1,15}(\.[0-9]+)?\s*", text) is not None
