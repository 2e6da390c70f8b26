"""How long to wait before asking a server again."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_LONGEST_WAIT = 120.0  # seconds between two tries, whatever a server asks for


def retry_delay(attempt: int, backoff: float, retry_after: str | None = None) -> float:
    """Seconds before the next try: what the server asks for, else backoff * 2**attempt * u with u from U(0.5, 1).

    Args:
        attempt: Number of the failed try, counted from 0.
        backoff: Seconds.
        retry_after: The header `Retry-After`, seconds or a date, if the server sent it.

    Returns:
        Between 0 and 120 seconds, even if the server asks for more.
    """
    seconds = _seconds_asked_for(retry_after) if retry_after else math.nan
    if not math.isfinite(seconds):
        seconds = backoff * 2**attempt * random.uniform(0.5, 1)  # jitter, to part those that failed together
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _seconds_asked_for(retry_after: str) -> float:
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return math.nan
    return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
