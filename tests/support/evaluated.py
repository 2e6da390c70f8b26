"""Runs stages of a project on all processes of a launch.

python -m tests.support.evaluated PROJECT.yaml RUN:STAGE[:ENDS] …
"""

from __future__ import annotations

import sys
from pathlib import Path

from rlhf.config.load import load_project
from rlhf.evaluation.kept import GrowingFile
from rlhf.pipeline.execute import run_stage
from tests.support.launches import leave_together


class Ended(BaseException):
    """The end of a process."""


def run(path: str | Path, what: str) -> None:
    """Run a stage, or the part of it before so many batches are kept.

    Args:
        path: The project's YAML.
        what: Name of the run, stage, and after how many batches of anything it ends.
    """
    name, stage, *ends = what.split(":")
    left, add = int(ends[0]) if ends else -1, GrowingFile.add

    def added(file: GrowingFile, batch: list) -> None:
        nonlocal left
        add(file, batch)
        left -= 1
        if left == 0:
            raise Ended

    GrowingFile.add = added  # type: ignore[method-assign]
    try:
        run_stage(load_project(path, [f"name={name}"]), stage)
    except Ended:
        pass
    finally:
        GrowingFile.add = add  # type: ignore[method-assign]


if __name__ == "__main__":
    for each in sys.argv[2:]:
        run(sys.argv[1], each)
    leave_together()
