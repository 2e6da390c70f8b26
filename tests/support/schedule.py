"""Which tests a worker of pytest-xdist gets together, and which come first."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

TOGETHER = ("tests/fuzz/",)
"""Folders whose session fixtures cost more than two workers save."""
LONGEST = (
    "tests/fuzz/",
    "tests/trl_trainers/",
    "tests/pipeline/test_runner.py",
    "tests/ppo/",
    "tests/evaluation/",
    "tests/policies/",
    "tests/models/",
    "tests/faults/",
    "tests/arena/",
    "tests/training/",
)
"""Where the files are that take longest. They come first: a worker that began one last would end after the others."""


def place(nodeid: str) -> int:
    """The place of a test's file in the order of the suite; a sort by it leaves the other files as they are."""
    return next((number for number, path in enumerate(LONGEST) if nodeid.startswith(path)), len(LONGEST))


class BySharedFixtures(LoadFileScheduling):
    """Hands out whole files, and whole folders of `TOGETHER`."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), super()._split_scope(nodeid))
