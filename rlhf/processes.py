"""The processes of a launch: which of them this is, and how they exchange values.

Every process calls what exchanges something, in the same order; a single process calls it as well. torch is imported
only there, so that a light module can ask which process it is in.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rlhf.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")

_SHORTEST, _LONGEST = 0.01, 1.0
"""Seconds between two checks whether the main process is ready; the pause doubles from the first to the second."""
_calls = itertools.count()


def rank() -> int:
    """Number of this process among all of the launch; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def node() -> int:
    """Number of this process's machine; 0 is that of the main process."""
    return int(os.environ.get("GROUP_RANK", "0"))


def nodes() -> int:
    """How many machines the launch has."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def on_node() -> int:
    """How many processes of the launch this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count()))


def is_first_on_node() -> bool:
    """Whether this process is the first of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def asked_for(engine: str) -> bool:
    """Whether the accelerate config asks for `FSDP` or `DEEPSPEED`."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def state(patience: float | None = None) -> PartialState:
    """Accelerate's state of the launch, on CPUs where there is no accelerator; the first call connects the processes.

    accelerate forms a group of CPU processes only if the first call of the process asks for it, so all code calls this.

    Args:
        patience: Seconds that processes wait for each other before they give up; only the first call's counts. None
            takes torch's default.

    Raises:
        UserError: The launch asks for FSDP where accelerate would silently leave it out, or for FSDP1.
    """
    import torch
    from accelerate import DistributedType, PartialState

    timeout = {} if patience is None else {"timeout": timedelta(seconds=patience)}
    joined = PartialState(cpu=not torch.accelerator.is_available(), **timeout)
    if asked_for("FSDP") and joined.num_processes > 1:
        if joined.distributed_type == DistributedType.MULTI_CPU:
            raise UserError(
                "the accelerate config asks for FSDP, which accelerate does not run on CPUs: every process would hold "
                "and train the whole model; take recipes/accelerate/cpu.yaml there"
            )
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError(
                "the accelerate config asks for FSDP1; set fsdp_version: 2, as in recipes/accelerate/fsdp2.yaml"
            )
    return joined


class _Outcome(NamedTuple):
    """What a function gave or raised."""

    value: Any = None
    error: Exception | None = None


def _outcome(make: Callable[[], Any]) -> _Outcome:
    try:
        return _Outcome(make())
    except Exception as error:
        return _Outcome(error=error)


def gathered(value: T) -> list[T]:
    """The values that all processes pass, by rank."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    state()
    values: list[T] = gather_object([value])
    return values


def from_main(make: Callable[[], T]) -> T:
    """The value that `make` gives on the main process, on every process.

    The others wait without a time limit: a function or an endpoint may need hours, as on one process.

    Args:
        make: Called on the main process alone.

    Raises:
        Exception: What `make` raised, on every process: on the others the nearest class of Python's or this package's
            own that its message alone can make.
    """
    if count() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    own = _outcome(make) if is_main() else _Outcome()
    _wait_for_main()
    sent: list[Any] = [(own.value, None if own.error is None else _copy(own.error))]
    broadcast_object_list(sent)
    value, error = sent[0]
    if error is not None:
        raise own.error or error
    made: T = own.value if is_main() else value
    return made


def broadcast(value: T) -> T:
    """The value that the main process passes, on every process."""
    return from_main(lambda: value)


def main_first(make: Callable[[], T]) -> T:
    """The value that `make` gives on this process, which calls it once the main process has: what that wrote is there.

    Raises:
        Exception: What `make` raised on the main process, as `from_main` has it, or on this one.
    """
    made: list[T] = []
    from_main(lambda: made.append(make()))
    return made[0] if is_main() else make()


def together(make: Callable[[], T]) -> T:
    """The value that `make` gives on this process, once it has given one on every process.

    Raises:
        Exception: What `make` raised on the first process on which it did, on every process, as `from_main` has it.
    """
    own = _outcome(make)
    errors = gathered(None if own.error is None else _copy(own.error))
    for number, error in enumerate(errors):
        if error is not None:
            raise own.error if number == rank() and own.error is not None else error
    made: T = own.value
    return made


def raised_elsewhere(error: BaseException | None) -> bool:
    """Whether another process raised an error, or the error that caused it, and this one was told of it."""
    while error is not None:
        if getattr(error, "raised_by", rank()) != rank():
            return True
        error = error.__cause__
    return False


def _copy(error: Exception) -> Exception:
    """An error for other processes: the nearest of its classes that they have and that its message alone can make."""
    for kind in type(error).__mro__:
        if kind.__module__.partition(".")[0] in ("builtins", "rlhf"):
            with contextlib.suppress(Exception):
                made: Any = kind(str(error))
                if str(made) == str(error):
                    made.raised_by = rank()
                    return made
    raise AssertionError("every exception is an Exception, which any message can make")


def _wait_for_main() -> None:
    """Wait for the main process through the launch's store: a collective would time out."""
    from torch.distributed.distributed_c10d import _get_default_store

    state()
    store, key = _get_default_store(), f"rlhf/ready/{next(_calls)}"
    if is_main():
        store.set(key, "")
    pause = _SHORTEST
    while not store.check([key]):
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)
