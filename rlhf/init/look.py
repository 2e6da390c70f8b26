"""Looks at a file: what its rows are, how many can be used, how long they are, and what they have in common."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.data.checks import fault, row_key
from rlhf.data.formats import find
from rlhf.data.inspector import contents, letters
from rlhf.data.records import (
    Demonstration,
    Feedback,
    Image,
    Labelled,
    Prompt,
    Record,
    Spanned,
    Text,
    Unusable,
    as_chat,
    as_role,
)
from rlhf.data.sources import read_rows
from rlhf.data.splits import completions, content_key, own_prompt
from rlhf.errors import UserError
from rlhf.init.columns import Sample
from rlhf.init.reading import Reading

if TYPE_CHECKING:
    from rlhf.data.tokenize import Codec

MOST_ROWS = 100_000
"""Rows that are looked at; more would not change what follows from them."""
_MEASURED = 2000
"""Rows of which the tokens are counted."""
_NUMBER = re.compile(r"[-+]?[$€£]?[0-9][0-9,]*(\.[0-9]+)?%?")

ROLES = {
    "preferences": "preferences", "feedback": "feedback", "demonstrations": "demonstrations",
    "labels": "demonstrations", "spans": "demonstrations", "text": "demonstrations", "prompts": "prompts",
}  # fmt: skip
"""Kind of rows: the set of `data:` that they are read as."""


@dataclass
class Facts:
    """What a file holds, read in one way."""

    rows: int = 0
    """Records, usable or not."""
    more: bool = False
    """Whether there are more rows than were looked at."""
    used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason: rows that nothing can be learned from."""
    duplicates: int = 0
    prompts: int = 0
    """Different prompts."""
    checkable: int = 0
    """Rows with a number as the answer, which a function can compare."""
    classes: Counter[str] = field(default_factory=Counter)
    """Class, or good and bad: rows."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Letters of each script."""
    words: Counter[str] = field(default_factory=Counter)
    """Language: how often its common words stand in the rows."""
    longer: int = 0
    """Pairs whose chosen reply has more characters."""
    records: list[Record] = field(default_factory=list)
    """A random part of the usable records."""

    @property
    def language(self) -> str:
        """The language, or else the script, of most of the text; empty where there is none."""
        if not self.scripts:
            return ""
        script, count = self.scripts.most_common(1)[0]
        share = count / self.scripts.total()
        name = f"{script.title()} script"
        if script == "LATIN" and self.words:
            language, hits = self.words.most_common(1)[0]
            name = language if hits * 2 > self.words.total() else "several languages"
        return name if share > 0.98 else f"{name} ({share:.0%} of the letters)"


@dataclass(frozen=True)
class Lengths:
    """Lengths of records; in tokens of the model where its tokenizer is there."""

    whole: tuple[int, ...] = ()
    """Of each record, prompt and reply; of a pair, the longer side."""
    replies: tuple[int, ...] = ()
    """Of each record, the reply; of a pair, the longer one."""
    exact: bool = True
    """Whether they were counted; else they follow from the characters."""

    @classmethod
    def joined(cls, parts: Iterable[Lengths]) -> Lengths:
        """The lengths of several files as those of one."""
        parts = list(parts)
        return cls(
            tuple(length for part in parts for length in part.whole),
            tuple(length for part in parts for length in part.replies),
            all(part.exact for part in parts),
        )

    def covering(self, share: float, replies: bool = False) -> int:
        """The length that so large a share of the records does not exceed; 0 of none."""
        ordered = sorted(self.replies if replies else self.whole)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


_COMMON = {
    "English": "the and of to is that you it for with we your have are my",
    "German": "der die und das ist nicht ein ich zu mit",
    "French": "le la les des et est une dans que pour",
    "Spanish": "el los que una por con las es para del",
    "Italian": "il che di non una per sono della con gli",
    "Portuguese": "o que não uma para com os em do da",
    "Dutch": "de het een van en dat niet zijn voor ik",
}
_LANGUAGES = {
    word: [language for language, words in _COMMON.items() if word in words.split()]
    for words in _COMMON.values()
    for word in words.split()
}
"""Common word: the languages that it is common in."""


def read_sample(source: str, base: Path, split: str | None = None, limit: int | None = None) -> Sample:
    """The first rows of a source, and the values of its columns.

    Args:
        source: A file, a folder or a hub id.
        base: Folder in which relative paths are looked up second.
        split: Which of its splits is read.
        limit: Most rows read.

    Raises:
        UserError: It cannot be read.
    """
    from rlhf.config.sets import SourceConfig

    sample = Sample()
    first = SourceConfig(source=source, limit=min(limit or MOST_ROWS, MOST_ROWS), split=split, streaming=True)
    for row, _ in read_rows(first, base):
        sample.add(row)
    return sample


def look(source: str, base: Path, reading: Reading, split: str | None = None, limit: int | None = None) -> Facts:
    """What a source holds.

    Args:
        source: A file, a folder or a hub id.
        base: Folder in which relative paths are looked up second.
        reading: How its rows are read.
        split: Which of its splits is read.
        limit: Most rows that the project is to use.

    Raises:
        UserError: A row is malformed; the message names its place.
    """
    facts, generator = Facts(), random.Random(0)
    role = ROLES[reading.kind]
    seen: set[bytes] = set()
    prompts: set[bytes] = set()
    layout = None
    most = min(limit or MOST_ROWS + 1, MOST_ROWS + 1)
    rows = read_rows(reading.source(source, split=split, limit=most, streaming=True), base)
    for number, (row, origin) in enumerate(rows):
        if number == MOST_ROWS:
            facts.more = True
            break
        layout = layout or find(reading.format, row, origin)
        for record in _records(layout, row, origin, role, reading.chat, facts):
            key = row_key(record)
            if key in seen:
                facts.duplicates += 1
                continue
            seen.add(key)
            prompts.add(content_key(own_prompt(record)))
            facts.used += 1
            _count(facts, record)
            if len(facts.records) < _MEASURED:
                facts.records.append(record)
            elif (place := generator.randrange(facts.used)) < _MEASURED:
                facts.records[place] = record
    facts.prompts = len(prompts)
    return facts


def _records(layout: Any, row: dict[str, Any], origin: str, role: str, chat: bool, facts: Facts) -> list[Record]:
    """The records of a row that something can be learned from; the others are counted."""
    kept: list[Record] = []
    try:
        parsed = layout.records(row, origin)
    except Unusable as error:
        facts.rows += 1
        facts.dropped[error.reason] += 1
        return kept
    for record in parsed:
        facts.rows += 1
        try:
            record = as_role(record, role)
            record = as_chat(record) if chat else record
            if (reason := fault(record)) is not None:
                raise Unusable(reason)
        except Unusable as error:
            facts.dropped[error.reason] += 1
            continue
        kept.append(record)
    return kept


def _count(facts: Facts, record: Record) -> None:
    replies = (
        [] if isinstance(record, Labelled | Spanned | Prompt) else [contents(side) for side in completions(record)]
    )
    texts = replies or [contents(own_prompt(record))]
    for text in texts:
        facts.scripts.update(letters(text))
    for word in re.findall(r"[^\W\d_]+", f"{contents(own_prompt(record))[:2000]} {texts[0][:2000]}".lower()):
        facts.words.update(_LANGUAGES.get(word, ()))
    if len(replies) == 2:
        facts.longer += len(replies[0]) > len(replies[1])
    if isinstance(record, Labelled):
        facts.classes.update(record.labels)
    if isinstance(record, Feedback):
        facts.classes["good" if record.label else "bad"] += 1
    if isinstance(record, Demonstration):
        answer = record.extra.get("answer")
        facts.checkable += isinstance(answer, str) and _NUMBER.fullmatch(answer.strip()) is not None


def measure(records: list[Record], codec: Codec | None) -> Lengths:
    """The lengths of records, in tokens of a model; without its tokenizer they are assumed from the characters.

    Args:
        records: Usable records.
        codec: The model's template and tokenizer.
    """
    whole, replies = [], []
    for record in records:
        try:
            total, reply = _characters(record) if codec is None else _tokens(record, codec)
        except (Unusable, UserError):
            continue  # counted when the data is prepared
        whole.append(total)
        replies.append(reply)
    return Lengths(tuple(whole), tuple(replies), codec is not None)


_CHARACTERS_A_TOKEN = 3.5


def _characters(record: Record) -> tuple[int, int]:
    prompt, sides = _texts(record)
    longest = max((len(contents(side)) for side in sides), default=0)
    return int((len(contents(prompt)) + longest) / _CHARACTERS_A_TOKEN) + 8, int(longest / _CHARACTERS_A_TOKEN) + 1


def _tokens(record: Record, codec: Codec) -> tuple[int, int]:
    prompt, sides = _texts(record)
    if not sides:
        return (0, 0) if isinstance(prompt, Image) else (len(codec.prompt(prompt)), 0)
    pairs = [codec.sequence(prompt, side) for side in sides]
    return max(len(ids) for ids, _ in pairs), max(len(ids) - start for ids, start in pairs)


def _texts(record: Record) -> tuple[Text, tuple[Text, ...]]:
    """A record's prompt and its replies."""
    if isinstance(record, Labelled):
        return record.text, ()
    if isinstance(record, Spanned):
        return record.prompt, ()
    return record.prompt, () if isinstance(record, Prompt) else tuple(completions(record))
