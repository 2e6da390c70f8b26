"""Exact match: whether a completion ends in the right answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from rlhf.data.records import Text
from rlhf.rewards.text import completion_text, references

_NUMBER = r"(?:(?<![\w)\]}])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:/0*[1-9]\d*)?"
"""1234, 1,234.00, -5, .5, 3/4; a hyphen after a word, a digit or a bracket is not a sign."""
_WORDS = r"[^\d\\^_{}=+/<>*-]*"
_QUANTITY = re.compile(rf"{_WORDS}?(?<![^\W\d_])({_NUMBER})(?![^\W\d_]){_WORDS}")
"""A single number, possibly among words; not 2x, x^2 or 3 + 4."""
_MARKED_NUMBER = re.compile(rf"####[\s:]*({_NUMBER})")
_MARKED_TEXT = re.compile(r"####[ \t]*(\S.*)")
_INNER = r"(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*\})*+\})*+"
_BOXED = re.compile(rf"\\boxed\{{({_INNER})\}}")
_UNSAID = re.compile(r"\\?[$€£¥₹]|\*\*")


def exact_match(
    prompts: Sequence[Text], completions: Sequence[Text], column: str = "answer", **columns: Any
) -> list[float | None]:
    r"""1 if the final answer of a completion equals the reference, else 0.

    The final answer is what follows the last `####` (as in GSM8K, Cobbe et al. 2021), else the content of the last
    `\boxed{}`, else the last number. Numbers are compared by value: "$1,234.00" is "1234", "0.5" is "1/2"; percent
    signs are ignored. A reference without a number, or one that is an expression, is compared as text, ignoring case
    and white space.

    Args:
        prompts: Not read.
        completions: B completions, text or messages.
        column: The column that holds the references: bare answers, or worked ones that end in `#### answer`.
        columns: The data's columns, a value per completion.

    Returns:
        B scores; None without a reference.
    """
    wanted = references(columns, column, len(completions))
    return [
        None if reference is None else float(is_match(completion_text(completion), reference))
        for completion, reference in zip(completions, wanted, strict=True)
    ]


def is_match(completion: str, reference: str) -> bool:
    """Whether the final answer of a completion is that of the reference."""
    wanted = final_text(reference)
    quantity = _QUANTITY.fullmatch(_plain(wanted))
    if quantity is None:
        return _normalised(final_text(completion)) == _normalised(wanted)
    return final_number(completion) == _value(quantity[1])


def final_text(text: str) -> str:
    r"""What is marked as the final answer: after the last `####`, else in the last `\boxed{}`, else all of the text."""
    marked = _MARKED_TEXT.findall(text) or _BOXED.findall(text)
    return marked[-1] if marked else text


def final_number(text: str) -> Fraction | None:
    r"""The number after the last `####`, else the last in the last `\boxed{}`, else the last; None if there is none."""
    text = _plain(text)
    boxed = _BOXED.findall(text)
    numbers = _MARKED_NUMBER.findall(text) or re.findall(_NUMBER, boxed[-1] if boxed else text)
    return _value(numbers[-1]) if numbers else None


def _plain(text: str) -> str:
    """A text without currency signs and bold type, and with hyphens for minus signs."""
    return _UNSAID.sub("", text).replace("\u2212", "-")


def _value(number: str) -> Fraction | None:
    try:
        return Fraction(number.replace(",", ""))
    except ValueError:  # Python refuses numbers of more than 4300 digits; a model that repeats itself writes them
        return None


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
