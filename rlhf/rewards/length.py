"""Length of a completion, or its distance from a target length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.errors import UserError, unknown_name
from rlhf.rewards.text import completion_text

_UNITS = {"words": lambda text: len(text.split()), "characters": len}


def length(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    target: float | None = None,
    unit: str = "words",
    **columns: Any,
) -> list[float | None]:
    """Length of each completion, or -|length - target| / target: 0 at the target, -1 if empty or twice as long.

    Args:
        prompts: Not read.
        completions: B completions, text or messages.
        target: Wanted length, in units; None to score by length itself.
        unit: `words` (between white space) or `characters`.
        columns: Not read.

    Returns:
        B scores: in units without a target, else as a share of the target.

    Raises:
        UserError: The unit is unknown or the target is not above 0.
    """
    if unit not in _UNITS:
        raise UserError(f"unknown unit {unit!r}; {unknown_name(str(unit), _UNITS)}")
    if target is not None and not (isinstance(target, int | float) and target > 0):
        raise UserError(f"target must be a number above 0, not {target!r}")
    lengths = [_UNITS[unit](completion_text(completion)) for completion in completions]
    return [float(size) if target is None else -abs(size - target) / target for size in lengths]
