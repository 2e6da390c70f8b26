"""Work divided among the processes of a launch: each makes its share, and all get the whole result, in order.

Every process makes the same calls; a single process makes everything itself. The values do not depend on the number of
processes, provided that each item's value depends on that item alone.
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
"""Seconds between two checks whether the main process is ready; the pause doubles from the first to the second."""


def processes() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return _rank() == 0


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def share(count: int, parts: int, part: int) -> range:
    """Indices of one share of `count` items: consecutive ones; the sizes of two shares differ by at most one."""
    return range(count * part // parts, count * (part + 1) // parts)


def shared(first: int, last: int, make: Callable[[int, int], Sequence[T]]) -> list[T]:
    """A value for each item from `first` to `last` (exclusive); each process makes a share of them.

    Args:
        first: Index of the first item.
        last: Index after the last item.
        make: Makes the values from its first argument to its second (exclusive), without a collective.
    """
    mine = share(last - first, processes(), _rank())
    return _joined(list(make(first + mine.start, first + mine.stop)) if mine else [])


def _joined(mine: list[T]) -> list[T]:
    """The lists of all processes, concatenated."""
    if processes() == 1:
        return mine
    from accelerate.utils import gather_object

    from rlhf.models.device import process_state

    process_state()
    whole: list[T] = gather_object(mine)
    return whole


def from_main(make: Callable[[], T]) -> T:
    """A value that the main process makes, on every process.

    The others wait without a time limit: a function or an endpoint may need hours, as on one process.

    Args:
        make: Called on the main process alone.
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
    """Wait for the main process through the launch's store: a collective would time out."""
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
    """A judge that all processes call together, and that scores each completion once.

    A judge that scores each row by itself (`rewards.scores_rows`) is called on every process with a share of the rows,
    in which the completions of a prompt stay together. Any other judge is called on the main process with all rows, as
    on one process: its scores may depend on the other rows, or on earlier calls.

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
