"""Work shared out among the processes of a launch: each makes its share, and every process has the whole, in order.

All processes call these functions alike, and one process by itself makes everything. The values do not depend on the
number of processes as long as an item's value depends on that item alone.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_SHORTEST, _LONGEST = 0.01, 1.0
"""Seconds between two looks whether the main process is ready: few at first, then more."""


def processes() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return _rank() == 0


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def share(count: int, parts: int, part: int) -> range:
    """Places of one of several shares of `count` items: neighbours, and as many as of any other share, or one less."""
    return range(count * part // parts, count * (part + 1) // parts)


def shared(first: int, last: int, make: Callable[[int, int], Sequence[T]]) -> list[T]:
    """A value for each of the items from `first` up to, not including, `last`, of which each process makes a share.

    Args:
        first: The first item.
        last: The item behind the last.
        make: Makes those from its first argument up to, not including, its second; it calls no other process.
    """
    mine = share(last - first, processes(), _rank())
    return _joined(list(make(first + mine.start, first + mine.stop)) if mine else [])


def _joined(mine: list[T]) -> list[T]:
    """The lists of all processes, one behind the other."""
    if processes() == 1:
        return mine
    from accelerate.utils import gather_object

    from rlhf.models.device import process_state

    process_state()
    whole: list[T] = gather_object(mine)
    return whole


def from_main(make: Callable[[], T]) -> T:
    """What the main process makes, on every process.

    However long it takes, the others wait: a function or an endpoint may need hours, as on one process.

    Args:
        make: Is called by the main process alone.
    """
    if processes() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    made: list[Any] = [make() if is_main() else None]
    _wait_for_main()
    broadcast_object_list(made)
    whole: T = made[0]
    return whole


_calls = itertools.count()


def _wait_for_main() -> None:
    """Wait for the main process in the launch's store: a collective would give up after a while."""
    from torch.distributed.distributed_c10d import _get_default_store

    from rlhf.models.device import process_state

    process_state()
    store, key = _get_default_store(), f"rlhf/ready/{next(_calls)}"
    if is_main():
        store.set(key, "")
    pause = _SHORTEST
    while not store.check([key]):
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)


def by_all(judge: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """A judge that all processes ask together, so that none of its answers is asked for twice.

    A judge that scores each row by itself (`rewards.scores_rows`) is asked by every process about its share, in which
    the completions of one prompt stay together. Any other is asked by the main process about everything, as it is on
    one process: its scores may depend on the other rows, or on what it was asked before.

    Args:
        judge: The judge, loaded by every process.
    """
    from rlhf.rewards import scores_rows

    def asked(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
        if processes() == 1:
            return judge(prompts, completions, **columns)
        if not scores_rows(judge):
            return from_main(functools.partial(judge, prompts, completions, **columns))
        starts = [row for row in range(len(prompts)) if not row or prompts[row] != prompts[row - 1]]
        mine = share(len(starts), processes(), _rank())
        rows = slice(*([*starts, len(prompts)][end] for end in (mine.start, mine.stop)))
        more = {name: values[rows] for name, values in columns.items()}
        return _joined(judge(prompts[rows], completions[rows], **more) if mine else [])

    return asked
