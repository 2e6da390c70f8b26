"""Exact match: whether a reply ends in the right answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from rlhf.data.records import Text
from rlhf.rewards.text import references, text_of

_NUMBER = r"(?:(?<![\w)\]}])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/0*[1-9]\d*)?"
"""1234, 1,234.00, -5, .5, 3/4; a hyphen behind a word, a digit or a bracket is no sign."""
_WORDS = r"[^\d\\^_{}=+/<>*-]*"
_QUANTITY = re.compile(rf"{_WORDS}?(?<![^\W\d_])({_NUMBER})(?![^\W\d_]){_WORDS}")
"""One number, with words about it; not 2x, x^2 or 3 + 4."""
_MARKED_NUMBER = re.compile(rf"####[\s:]*({_NUMBER})")
_MARKED_TEXT = re.compile(r"####[ \t]*(\S.*)")
_INNER = r"(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*\})*+\})*+"
_BOXED = re.compile(rf"\\boxed\{{({_INNER})\}}")
_UNSAID = re.compile(r"\\?[$€£¥₹]|\*\*")


def exact_match(
    prompts: Sequence[Text], completions: Sequence[Text], column: str = "answer", **columns: Any
) -> list[float | None]:
    r"""1 where the final answer of a reply equals the reference, else 0.

    A final answer is what follows the last `####` (as in GSM8K, Cobbe et al. 2021), else the content of the last
    `\boxed{}`, else the last number. Numbers are equal by value: "$1,234.00" is "1234", "0.5" is "1/2"; a percent sign
    does not count. A reference that holds no number, or is an expression, is compared as text, without regard to case
    and white space.

    Args:
        prompts: Not read.
        completions: Replies, text or messages.
        column: The column that holds the references: bare answers, or worked ones that end in `#### answer`.
        columns: The data's columns, one value a reply.

    Returns:
        One score a reply; None where it has no reference.
    """
    wanted = references(columns, column, len(completions))
    return [
        None if reference is None else float(is_match(text_of(completion), reference))
        for completion, reference in zip(completions, wanted, strict=True)
    ]


def is_match(reply: str, reference: str) -> bool:
    """Whether the final answer of a reply is that of the reference."""
    wanted = final_text(reference)
    quantity = _QUANTITY.fullmatch(_plain(wanted))
    if quantity is None:
        return _normalised(final_text(reply)) == _normalised(wanted)
    return final_number(reply) == _value(quantity[1])


def final_text(text: str) -> str:
    r"""What is marked as the final answer: behind the last `####`, else in the last `\boxed{}`; unmarked, all of it."""
    found = _MARKED_TEXT.findall(text) or _BOXED.findall(text)
    return found[-1] if found else text


def final_number(text: str) -> Fraction | None:
    r"""The number behind the last `####`, else the last one in the last `\boxed{}`, else the last one; None without."""
    text = _plain(text)
    boxed = _BOXED.findall(text)
    found = _MARKED_NUMBER.findall(text) or re.findall(_NUMBER, boxed[-1] if boxed else text)
    return _value(found[-1]) if found else None


def _plain(text: str) -> str:
    """Without currency signs and bold type, and with a hyphen for a minus."""
    return _UNSAID.sub("", text).replace("\u2212", "-")


def _value(number: str) -> Fraction | None:
    try:
        return Fraction(number.replace(",", ""))
    except ValueError:  # Python reads no number of more than 4300 digits, and a model that repeats itself writes them
        return None


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
