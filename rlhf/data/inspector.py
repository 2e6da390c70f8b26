"""Inspects every row once, while a set is prepared, for what misleads training: see `findings`.

What a single row shows (lengths, markers, letters) is counted over all rows that can be read and have text on every
side, so that neither duplicates nor the split change it. What rows have in common is looked for among the rows that are
used, without exact duplicates.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

from rlhf.data.findings import Finding, Findings, ordered
from rlhf.data.index import HELD_OUT, ROW, TRAINED, Index, Match
from rlhf.data.records import Demonstration, Image, Labelled, Preference, Record, Text
from rlhf.data.splits import canonical, completions, contexts

_EXAMPLES = 3
_OWN_SHARE = 0.8
"""Share of a completion's letters that must belong to one script."""

_MARKERS = re.compile(
    r"<\|[A-Za-z][\w ]{0,30}\|>|<｜[^｜\n]{1,40}｜>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|\n\n(?:Human|Assistant|User):|(?:^|\n)### (?:Human|Assistant|Instruction|Response|Input):"
)
"""Special tokens and turn markers of chat templates that are in use (ChatML, Llama, Mistral, Gemma, HH, Alpaca, …)."""

_UNDECODABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]|&(?:amp|lt|gt|quot|apos|nbsp|#[0-9]{1,6}|#x[0-9A-Fa-f]{1,5});|â€|Ã[\x80-\xbf]"
)
"""Replacement and control characters, HTML entities, and UTF-8 that was read as Latin-1."""

_TEXTS = {
    "contradictory": "rows contradict an earlier one: the same replies to the same prompt, the other way round",
    "leaked": "held-out prompts are nearly those of training rows: what is measured on them is too good",
    "markers": "rows have a chat template's marker{} in a reply: the model learns to write it",
    "undecodable": "rows have control or replacement characters, HTML entities or wrongly decoded letters",
    "conflicting": "rows prefer a reply that an earlier one rejects, or reject one it prefers: fine in a ranking only",
    "near_duplicates": "{} nearly repeat an earlier one",
}
"""The sentence of each finding, after its count."""

_ASCII = re.compile(r"[\x00-\x7f]+")
_NO_ASCII_LETTERS = bytes(code for code in range(256) if not (code < 128 and chr(code).isalpha()))
_OF_A_SCRIPT = re.compile("LETTER|CHARACTER|SYLLABLE|IDEOGRAPH")
_ONE_WRITING = dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO"), "HAN")


class Inspector:
    """Counts what is suspicious in a set, row by row.

    Args:
        name: The set.
        index: Remembers the rows, to find what they have in common; for this set only.
    """

    def __init__(self, name: str, index: Index) -> None:
        self.name, self.index = name, index
        self.rows = self.kept = self.trained = self.held_out = 0
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[tuple[str, ...]]] = {}
        self._marker = ""
        self._letters: Counter[str] = Counter()
        self._scripts: Counter[str] = Counter()
        self._by_script: dict[str, list[tuple[int, str]]] = {}
        self._lengths = {"length": _Lengths(), "length_tokens": _Lengths()}
        self._texts = 0

    def read(self, record: Record) -> None:
        """Inspect a row that has text on every side, whatever becomes of it later."""
        self.rows += 1
        texts = [_prompt(record)] if isinstance(record, Labelled) else [contents(side) for side in completions(record)]
        if isinstance(record, Preference):
            self._lengths["length"].add(len(texts[0].strip()), len(texts[1].strip()))
        if marker := next(filter(None, map(_MARKERS.search, texts)), None):
            self._marker = self._marker or marker[0].strip()
            self._count("markers", record.origin)
        if any(map(_UNDECODABLE.search, texts)) or _UNDECODABLE.search(_prompt(record)):
            self._count("undecodable", record.origin)
        self._language(texts, record.origin)

    def keep(self, record: Record, side: Literal["train", "eval"]) -> None:
        """Remember a row that is not an exact duplicate, with its side of the split."""
        from rlhf.data.near import shingles

        self.kept += 1
        row = self.index.row(record.origin)
        prompt = _prompt(record)
        prompt_key = _digest("prompt", canonical(_asked(record)))
        kind = 0
        if self.index.add(prompt_key):
            kind = TRAINED if side == "train" else HELD_OUT
            self.trained += side == "train"
            self.held_out += side == "eval"
        if isinstance(record, Preference):
            sides = [_digest("reply", prompt_key.hex(), canonical(side)) for side in completions(record)]
            self.index.preference(row, _digest("pair", *sorted(key.hex() for key in sides)), *sides)
        if isinstance(record, Demonstration):
            self.index.text(row, ROW, shingles(f"{prompt}\n{contents(record.completion)}"))
            self._texts += 1
        elif kind:
            kind += ROW
            self._texts += 1
        if kind:
            self.index.text(row, kind, shingles(prompt))

    def hold_out(self, record: Record) -> None:
        """Remember a prompt of `data.prompts`, which nothing may train on."""
        from rlhf.data.near import shingles

        if self.index.add(_digest("prompt", canonical(_asked(record)))):
            self.held_out += 1
            self.index.text(self.index.row(record.origin), HELD_OUT, shingles(_prompt(record)))

    def encoded(self, columns: dict[str, Any]) -> None:
        """Compare the lengths of a pair's completions in tokens; they must not be truncated."""
        if "chosen_ids" in columns:
            self._lengths["length_tokens"].add(len(columns["chosen_ids"]), len(columns["rejected_ids"]))

    def findings(self, *others: Finding) -> Findings:
        """All findings, once every row has been inspected.

        Args:
            others: Findings from elsewhere to include.
        """
        what = "rows" if self.name == "demonstrations" else "prompts"
        entries = [
            self._of_rows("markers", _TEXTS["markers"].format(f" ({self._marker})" if self._marker else "")),
            self._of_rows("undecodable", _TEXTS["undecodable"]),
            self._other_language(),
            self._matching("near_duplicates", self.index.near_duplicates(), self._texts, what),
        ]
        if self.held_out and self.trained:
            entries.append(self._matching("leaked", self.index.leaks(), self.held_out))
        if self._lengths["length"].n:
            entries.append(self._matching("contradictory", self.index.contradictions(), self.kept))
            entries.append(self._matching("conflicting", self.index.conflicts(), self.kept))
        entries += [lengths.finding(kind) for kind, lengths in self._lengths.items() if lengths.n]
        return ordered(self.name, [*others, *entries])

    def _count(self, kind: str, *origins: str) -> None:
        self._counts[kind] += 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(origins)

    def _of_rows(self, kind: str, text: str) -> Finding:
        return Finding(kind, self._counts[kind], self.rows, text, tuple(self._examples.get(kind, ())))

    def _matching(self, kind: str, matches: Iterable[Match], n: int, what: str = "") -> Finding:
        for row, earlier in matches:
            self._count(kind, earlier, row)
        return Finding(kind, self._counts[kind], n, _TEXTS[kind].format(what), tuple(self._examples.get(kind, ())))

    def _language(self, texts: list[str], origin: str) -> None:
        """Count a row under the script that all its texts are in, or under none."""
        own = set()
        for text in texts:
            counts = letters(text)
            if total := sum(counts.values()):
                script = max(counts, key=lambda name: counts[name])
                own.add(script if counts[script] >= _OWN_SHARE * total else "")
                self._letters.update(counts)
        if own:
            script = own.pop() if len(own) == 1 else ""
            self._scripts[script] += 1
            examples = self._by_script.setdefault(script, [])
            if len(examples) < _EXAMPLES:
                examples.append((self.rows, origin))

    def _other_language(self) -> Finding:
        """Rows in another script than most letters of the set, which is known only once all rows have been read."""
        ((target, _),) = self._letters.most_common(1) or [("", 0)]
        others = sorted(entry for script, rows in self._by_script.items() if script != target for entry in rows)
        n = self._scripts.total()
        text = f"rows have a reply of which more than a fifth of the letters are not {target.title()}, as most are"
        examples = tuple((origin,) for _, origin in others[:_EXAMPLES])
        return Finding("other_language", n - self._scripts[target], n, text, examples)


class _Lengths:
    """How long the sides of pairs are, and which of them is longer."""

    def __init__(self) -> None:
        self.n = self.longer = self.shorter = self.chosen = self.rejected = 0

    def add(self, chosen: int, rejected: int) -> None:
        self.n += 1
        self.longer += chosen > rejected
        self.shorter += chosen < rejected
        self.chosen += chosen
        self.rejected += rejected

    def finding(self, kind: str) -> Finding:
        """The share of pairs whose chosen side is longer; worth reporting if length predicts which side is chosen."""
        from scipy.stats import binomtest

        interval = binomtest(self.longer, self.n).proportion_ci(method="wilson")
        decided = self.longer + self.shorter
        biased = False
        if decided:
            low, high = binomtest(self.longer, decided).proportion_ci(method="wilson")
            biased = not low <= 0.5 <= high
        means = {"mean_chosen": self.chosen / self.n, "mean_rejected": self.rejected / self.n}
        unit = "characters" if kind == "length" else "tokens"
        text = (
            f"pairs prefer the reply that is longer in {unit}, {self.shorter:,} the shorter one (mean "
            f"{means['mean_chosen']:,.0f} chosen, {means['mean_rejected']:,.0f} rejected): a preference for length can "
            "be learned instead"
        )
        values = {**means, "shorter": float(self.shorter)}
        return Finding(kind, self.longer, self.n, text, (), (float(interval.low), float(interval.high)), values, biased)


def contents(text: Text) -> str:
    """A text without its roles: the contents of its messages, a line each. An image has no text."""
    if isinstance(text, Image):
        return ""
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


def letters(text: str) -> dict[str, int]:
    """Number of letters of a text in each script.

    A letter's Unicode name tells its script; Han and kana count as one. What all scripts share (digits, mathematical
    letters, modifiers) is left out.
    """
    counts: dict[str, int] = {}
    if count := len(text.encode("ascii", "ignore").translate(None, _NO_ASCII_LETTERS)):
        counts["LATIN"] = count
    if not text.isascii():
        for letter, count in Counter(_ASCII.sub("", text)).items():
            if script := _script(letter):
                counts[script] = counts.get(script, 0) + count
    return counts


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str | None:
    name = unicodedata.name(letter, "")
    if not letter.isalpha() or unicodedata.category(letter) == "Lm" or not _OF_A_SCRIPT.search(name):
        return None
    words = name.split()
    first = words[words[0] in ("FULLWIDTH", "HALFWIDTH")]
    return _ONE_WRITING.get(first, first)


def _prompt(record: Record) -> str:
    return contents(_asked(record))


def _asked(record: Record) -> Text:
    """The prompt of a record; of questions about a text this text, which they share."""
    return record.prompt if isinstance(record, Demonstration) else contexts(record)[0]


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()
