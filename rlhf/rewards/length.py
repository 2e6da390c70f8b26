"""Length of a reply, plain or as the distance from a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.data.records import Text
from rlhf.errors import UserError, unknown_name
from rlhf.rewards.text import text_of

_UNITS = {"words": lambda text: len(text.split()), "characters": len}


def length(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    target: float | None = None,
    unit: str = "words",
    **columns: Any,
) -> list[float | None]:
    """Length of each reply, or -|length - target| / target: 0 at the target, -1 for no reply or one twice as long.

    Args:
        prompts: Not read.
        completions: Replies, text or messages.
        target: Wanted length, in units; None for the length itself.
        unit: `words` (between white space) or `characters`.
        columns: Not read.

    Returns:
        One score a reply, in units without a target, else as a share of the target.

    Raises:
        UserError: The unit is unknown or the target is not above 0.
    """
    if unit not in _UNITS:
        raise UserError(f"unknown unit {unit!r}; {unknown_name(str(unit), _UNITS)}")
    if target is not None and not (isinstance(target, int | float) and target > 0):
        raise UserError(f"target must be a number above 0, not {target!r}")
    lengths = [_UNITS[unit](text_of(completion)) for completion in completions]
    return [float(found) if target is None else -abs(found - target) / target for found in lengths]
