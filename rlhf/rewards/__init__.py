"""What "better" means: functions and models called as `f(prompts, completions, **columns) -> list[float | None]`."""

from __future__ import annotations

from collections.abc import Callable

RewardFunction = Callable[..., list[float | None]]
"""TRL's convention: prompts and completions as text or message lists, columns by name; None: not scorable."""
