"""Streams of rows: with a progress bar, and with work done ahead on a second thread."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rlhf.progress import bar

_AHEAD = 256
_T = TypeVar("_T")


def worked_ahead(items: Iterator[_T], ahead: Callable[[list[_T]], None]) -> Iterator[_T]:
    """The same items, each after `ahead` has seen it; the next batch is read while `ahead` works on this one."""
    with ThreadPoolExecutor(1) as worker:
        batch = list(itertools.islice(items, _AHEAD))
        while batch:
            working = worker.submit(ahead, batch)
            following = list(itertools.islice(items, _AHEAD))
            working.result()
            yield from batch
            batch = following


def progress(rows: Iterator[_T], role: str) -> Iterator[_T]:
    """The same rows; how many have come is told, on a terminal if they take longer than two seconds."""
    with bar(role, None, "rows", delay=2) as drawn:
        for row in rows:
            yield row
            drawn.update()
