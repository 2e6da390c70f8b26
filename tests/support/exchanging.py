"""Started on two processes: what each is told by the functions of `rlhf.processes`. FOLDER gets it.

python -m tests.support.exchanging FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from rlhf import processes
from rlhf.errors import UserError
from rlhf.policies.vllm.client import Refused
from tests.support.launches import leave_together


class Unknown(ValueError):
    """An error of a file that another process may not have."""


def raised(exchange: Callable[[Callable[[], Any]], Any], *errors: Exception | None) -> list[Any]:
    """What is raised where each process has such an error, its message, and whether another process raised it."""
    own = errors[processes.rank()]

    def make() -> None:
        if own is not None:
            raise own

    try:
        exchange(make)
    except Exception as error:
        return [type(error).__name__, str(error), processes.raised_elsewhere(error)]
    return []


def waits_without_limit() -> str:
    """What the main process makes while a collective would time out."""
    from torch.distributed.distributed_c10d import _set_pg_timeout

    _set_pg_timeout(timedelta(seconds=1))
    return processes.from_main(lambda: time.sleep(2.5) or "slow")


def main(folder: str) -> None:
    """Exchange, and write."""
    rank, file = processes.rank(), Path(folder, "prepared")

    def prepared() -> str:
        if not file.exists():
            time.sleep(0.5)
            file.write_text(f"by {rank}")
        return file.read_text()

    told = {
        "gathered": processes.gathered(f"of {rank}"),
        "broadcast": processes.broadcast(f"of {rank}"),
        "from main": processes.from_main(lambda: {"made by": rank}),
        "main first": processes.main_first(prepared),
        "together": processes.together(lambda: rank),
        "mistake": raised(processes.from_main, UserError("a mistake"), None),
        "refused": raised(processes.from_main, Refused(404, "no such adapter"), None),
        "unknown": raised(processes.main_first, Unknown("no file"), None),
        "missing": raised(processes.from_main, KeyError("name"), None),
        "one": raised(processes.together, None, UserError("of the second")),
        "both": raised(processes.together, UserError("of the first"), UserError("of the second")),
        "slow": waits_without_limit(),
    }
    Path(folder, f"told-{rank}.json").write_text(json.dumps(told))
    leave_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
