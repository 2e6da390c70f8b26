"""Work divided among the processes of a launch: each makes its share, and all get the whole result, in order.

Every process makes the same calls; a single process makes everything itself. The values do not depend on the number of
processes, provided that each item's value depends on that item alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rlhf import processes

T = TypeVar("T")


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
    mine = share(last - first, processes.count(), processes.rank())
    return _joined(lambda: list(make(first + mine.start, first + mine.stop)) if mine else [])


def _joined(make: Callable[[], list[T]]) -> list[T]:
    """The lists that all processes make, concatenated; what one of them raises, all raise."""
    return [*itertools.chain.from_iterable(processes.gathered(processes.together(make)))]


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
        if processes.count() == 1:
            return judge(prompts, completions, **columns)
        if not scores_rows(judge):
            return processes.from_main(functools.partial(judge, prompts, completions, **columns))
        starts = [row for row in range(len(prompts)) if not row or prompts[row] != prompts[row - 1]]
        mine = share(len(starts), processes.count(), processes.rank())
        rows = slice(*([*starts, len(prompts)][end] for end in (mine.start, mine.stop)))
        more = {name: values[rows] for name, values in columns.items()}
        return _joined(lambda: judge(prompts[rows], completions[rows], **more) if mine else [])

    return asked
