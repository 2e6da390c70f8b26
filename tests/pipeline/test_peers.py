"""Processes of one launch, without torch: which of them ends the others, and what is said of it."""

import os
import subprocess
import sys
import time

import pytest

PROCESS = """
import os, signal, sys, time
from rlhf.errors import UserError
from rlhf.pipeline import peers, stage

def work():
    time.sleep(0.5)
    if os.environ["RANK"] in "{ranks}":
        {fault}
    time.sleep({late})
    raise UserError("connection closed by peer")

sys.exit(stage.guarded(work))
"""


def ends(tmp_path, fault: str, ranks: str = "1", late: float = 60.0) -> tuple[list[int], list[str], float]:
    """Exit codes of two processes, what they say, and the seconds that took."""
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_PORT": tmp_path.name, "TMPDIR": str(tmp_path)}
    code = PROCESS.format(fault=fault, ranks=ranks, late=late)
    start = time.monotonic()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [process.communicate()[1] for process in started]
    return [process.returncode for process in started], "".join(said).splitlines(), time.monotonic() - start


def test_a_process_that_is_killed_ends_the_others_which_say_so(tmp_path):
    codes, said, seconds = ends(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert codes == [2, -9]
    assert said == ["error: process 1 of 2 was killed; was there memory enough?"]
    assert seconds < 20


@pytest.mark.parametrize("late", [0.2, 60.0], ids=["the others notice", "the others wait"])
def test_the_first_that_fails_is_the_one_that_is_read_of(tmp_path, late):
    codes, said, seconds = ends(tmp_path, "raise UserError('a mistake')", late=late)
    assert codes == [2, 2]
    assert said == ["error: process 1 of 2: a mistake"]
    assert seconds < 20


def test_what_all_of_them_find_is_said_once_and_of_nobody(tmp_path):
    codes, said, _ = ends(tmp_path, "raise UserError('a mistake')", ranks="01")
    assert codes == [2, 2]
    assert said == ["error: a mistake"]
