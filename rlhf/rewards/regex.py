"""Whether a completion matches a regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.errors import UserError
from rlhf.rewards.text import completion_text


def regex(
    prompts: Sequence[Text], completions: Sequence[Text], pattern: str, full: bool = False, **columns: Any
) -> list[float | None]:
    """1 if a completion matches the pattern, else 0.

    Args:
        prompts: Not read.
        completions: B completions, text or messages.
        pattern: A regular expression for Python's `re`; flags are part of it, such as `(?i)` to ignore case.
        full: Whether the whole completion has to match, rather than any part of it.
        columns: Not read.

    Returns:
        B scores.

    Raises:
        UserError: The pattern is not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(f"pattern {pattern!r} is no regular expression: {error}") from None
    match = compiled.fullmatch if full else compiled.search
    return [float(match(completion_text(completion)) is not None) for completion in completions]
