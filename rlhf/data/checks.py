"""Checks of rows and sets that need no tokenizer: whether anything can be learned from them, and whether enough is."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from rlhf.data.findings import Finding
from rlhf.data.ledger import DUPLICATE, IDENTICAL, NO_FAULT, Ledger
from rlhf.data.records import Demonstration, Feedback, Labelled, Record, Spanned, Text
from rlhf.data.splits import canonical, completions
from rlhf.errors import UserError

if TYPE_CHECKING:
    from rlhf.config.sets import LimitsConfig
    from rlhf.data.findings import Findings

_FEW = 10
"""Fewer training rows than this are reported."""
_COUNTABLE = 1e9
"""Numbers of rows from here on are rounded."""


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


def none_held_out(role: str, rows: int, holdout: float) -> str:
    """Why no row of a set is held out and how many it would take, as the end of a sentence.

    Args:
        role: The key of the set in `data:`.
        rows: Its rows to train on.
        holdout: Share of prompts that the project holds out.
    """
    if holdout == 0:
        return f"holdout is 0, so data.{role} holds none out"
    enough = 3 / holdout  # (1 - h)^n < exp(-h n): 19 of 20 sets of this size have one
    about = f"{math.ceil(enough)}" if enough < _COUNTABLE else f"{enough:g}"
    return f"holdout {holdout} keeps none of the {rows} rows of data.{role} (it takes about {about})"


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
    * `empty text`: nothing to classify, or nothing to answer a question from.
    * `empty question`: no question about a text.
    * `no label`: no class, where there must be one.
    * `broken Unicode`: half a surrogate pair, which neither tokenizers nor UTF-8 files can represent.
    """
    if isinstance(record, Labelled):
        if not record.text.strip():
            return "empty text"
        unlabelled = not all(label.strip() for label in record.labels) or not (record.labels or record.multi)
        return "no label" if unlabelled else _broken([record.text, record.labels, record.extra])
    if isinstance(record, Spanned):
        if not record.context.strip():
            return "empty text"
        return _broken([record.prompt, record.extra]) if record.question.strip() else "empty question"
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
    match record:
        case Labelled():
            parts += [canonical(record.text), *sorted(record.labels)]
        case Spanned():
            parts += [canonical(record.prompt), *map(str, record.answers)]
        case Feedback():
            parts += [canonical(record.prompt), canonical(record.completion), str(record.label)]
        case _:
            parts += [canonical(text) for text in (record.prompt, *completions(record))]
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
