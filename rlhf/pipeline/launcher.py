"""`accelerate launch` without a traceback of its own where a process fails: that process has said why."""

from __future__ import annotations

import logging
import sys


def main() -> int:
    """Do what `accelerate launch` does with the same arguments."""
    from accelerate.commands.launch import main as launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch()
    except (ChildFailedError, SignalException):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
