"""What "better" means: functions and models called as `f(prompts, completions, **columns) -> list[float | None]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

RewardFunction = Callable[..., list[float | None]]
"""TRL's convention: prompts and completions as text or message lists, columns by name; None: no score."""

_ARGUMENTS = ("prompts", "completions")


def scores_rows(judge: Any) -> bool:
    """Whether a reward function's score of a row depends on that row alone, so that processes may share the rows.

    Reward models do. A function may use the whole batch or remember earlier calls, so it has to declare it by an
    attribute: `score.rowwise = True`.
    """
    return bool(getattr(judge, "rowwise", False))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The other columns of B rows, as reward functions take them: `judge(prompts, completions, **columns_of(rows))`.

    Args:
        rows: The extra columns of each row, by name.

    Returns:
        B values for each column that any row has, None where a row lacks it. Columns named `prompts` or `completions`
        are left out: reward functions have arguments of these names.
    """
    names = dict.fromkeys(name for row in rows for name in row if name not in _ARGUMENTS)
    return {name: [row.get(name) for row in rows] for name in names}
