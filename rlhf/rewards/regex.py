"""Whether a reply has a form, given as a regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.errors import UserError
from rlhf.rewards.text import text_of


def regex(
    prompts: Sequence[Text], completions: Sequence[Text], pattern: str, full: bool = False, **columns: Any
) -> list[float | None]:
    """1 where a reply matches the pattern, else 0.

    Args:
        prompts: Not read.
        completions: Replies, text or messages.
        pattern: A regular expression of Python's `re`; flags stand in it, `(?i)` to disregard case.
        full: Whether the whole reply has to match, rather than a part of it.
        columns: Not read.

    Returns:
        One score a reply.

    Raises:
        UserError: The pattern is no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(f"pattern {pattern!r} is no regular expression: {error}") from None
    match = compiled.fullmatch if full else compiled.search
    return [float(match(text_of(completion)) is not None) for completion in completions]
