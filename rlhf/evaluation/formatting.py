"""Numbers as text, as the evidence writes them: in warnings, tables, sentences and cards."""

from __future__ import annotations

import math
from collections.abc import Sequence

_PLURALS = {
    "annotator": "annotators",
    "comparison": "comparisons",
    "decided vote": "decided votes",
    "pair": "pairs",
    "prompt": "prompts",
    "reply": "replies",
    "rollout": "rollouts",
    "row": "rows",
    "seed": "seeds",
    "shared comparison": "shared comparisons",
    "token": "tokens",
    "vote": "votes",
}


def number(value: float | None, digits: int | None = None, signed: bool = False) -> str:
    """A number with a true minus sign; about three significant digits unless told; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if digits is None:
        digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
        if value and abs(value) < 0.01:
            return f"{value:.1e}".replace("-", "−").replace("e−0", "e−")
    text = f"{value:+,.{digits}f}" if signed else f"{value:,.{digits}f}"
    return (text if float(text.replace(",", "")) else text.lstrip("+-")).replace("-", "−")


def estimate(
    value: float | None, interval: Sequence[float] | None, digits: int | None = None, signed: bool = False
) -> str:
    """An estimate with its interval, to the digits the interval deserves: `+0.12 [0.09, 0.15]`.

    Further digits are added where rounding would put an end of the interval on zero that is not there.
    """
    if interval is None:
        return number(value, digits, signed)
    if digits is None:
        width = abs(interval[1] - interval[0])
        digits = min(4, max(2, math.ceil(-math.log10(width)))) if width > 0 else 2
        while digits < 6 and any(end and not round(end, digits) for end in interval):
            digits += 1
    return f"{number(value, digits, signed)} [{number(interval[0], digits)}, {number(interval[1], digits)}]"


def percent(share: float | None, interval: Sequence[float] | None = None) -> str:
    """A share as whole percent: `71% [66%, 75%]`."""
    if share is None or not math.isfinite(share):
        return "–"
    text = f"{100 * share:.0f}%".replace("-", "−")
    return text if interval is None else f"{text} [{percent(interval[0])}, {percent(interval[1])}]"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `41 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if minutes:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def count(n: int, noun: str) -> str:
    """`1 reply`, `1,200 replies`."""
    return f"{n:,} {noun if n == 1 else _PLURALS[noun]}"
