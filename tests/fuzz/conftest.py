"""The world and the sandbox of all tests here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz.inputs import Input, message, problems, state_of
from tests.fuzz.sandbox import Box, Ended, Sandbox
from tests.fuzz.world import finish_run, make_world


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox()
    yield made
    made.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory, sandbox) -> Path:
    made = make_world(tmp_path_factory.mktemp("fuzz") / "world")
    sandbox.warm(made / "project")
    return made


Run = Callable[[Input], tuple[Ended, str, list[str]]]


@pytest.fixture
def run(tmp_path_factory, sandbox, world) -> Run:
    """Runs an input: how it ended, its last line, and what does not hold."""

    def ran(made: Input) -> tuple[Ended, str, list[str]]:
        if made.run and not (world / "run").exists():
            finish_run(world, sandbox)
        box = Box(tmp_path_factory.mktemp("box")).make()
        made.put(world, box)
        before = state_of(box.folder)
        ended = sandbox.run(box, made.command, made.limit, made.trains)
        return ended, message(box), problems(made, ended, box, before)

    return ran
