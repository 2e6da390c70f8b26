"""One arena of a run at a time."""

import subprocess
import sys

import pytest

from rlhf.arena.lock import only_arena
from rlhf.errors import UserError


def test_a_second_arena_is_refused_and_the_next_one_is_not(tmp_path):
    with only_arena(tmp_path), pytest.raises(UserError, match="open already"), only_arena(tmp_path):
        pytest.fail("two at once")
    with only_arena(tmp_path):
        pass


def test_the_lock_goes_with_its_process(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from rlhf.arena.lock import only_arena\n"
        "with only_arena(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="open already"), only_arena(tmp_path):
            pytest.fail("two at once")
        other.kill()
        other.wait()
    with only_arena(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "arena").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="arena"), only_arena(tmp_path):
        pytest.fail("no lock")
