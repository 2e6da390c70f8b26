"""The pages as HTML. Prompts, replies and names are what somebody wrote: the template engine escapes all of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from rlhf.arena.results import Results, preferences
from rlhf.data.records import as_conversation
from rlhf.evaluation import formatting

_SCALE = 1000
"""Width of a strip of intervals in its own units."""


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf.arena"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(turns=as_conversation, formatting=formatting, strip=strip, preferences=preferences)
    environment.filters.update(
        percent=percent, interval=interval, rating=rating_interval, seconds=formatting.duration, two=two
    )
    return environment


def render(template: str, **values: Any) -> str:
    """A page.

    Args:
        template: Its file in `templates/`.
        values: What it shows.
    """
    return _environment().get_template(template).render(**values)


def percent(share: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * share:.0f}%"


def interval(bounds: list[float] | None) -> str:
    """An interval of a share, `[40%, 61%]`; nothing where there is none."""
    return "" if bounds is None else f"[{percent(bounds[0])}, {percent(bounds[1])}]"


def rating_interval(bounds: list[float] | None) -> str:
    """An interval of a rating, `[970, 1033]`; nothing where there is none."""
    return "" if bounds is None else f"[{bounds[0]:.0f}, {bounds[1]:.0f}]"


def two(value: float | None) -> str:
    """A number with two decimals, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def strip(results: Results) -> dict[str, tuple[float, float, float]]:
    """Where each rating and its interval stand on a strip from 0 to 1000: (lower end, rating, upper end)."""
    rated = [(each["policy"], each["rating"], each["rating_ci"]) for each in results.ratings]
    bounds = {
        policy: (*(interval or (value, value)), value) for policy, value, interval in rated if value is not None
    }  # fmt: skip
    if not bounds:
        return {}
    low, high = min(each[0] for each in bounds.values()), max(each[1] for each in bounds.values())
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return round((0.02 + 0.96 * (value - low) / width) * _SCALE, 1)

    return {name: (place(lower), place(value), place(upper)) for name, (lower, upper, value) in bounds.items()}
