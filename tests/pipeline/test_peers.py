"""Processes of one launch, without torch: which of them ends the others, and what is said of it."""

import os
import re
import subprocess
import sys
import time

import pytest

PROCESS = """
import os, signal, sys, time
from rlhf.errors import UserError
from rlhf.pipeline import peers, stage

def work():
    while len([*peers.own.folder.glob("[01].json")]) < 2:  # both are there
        time.sleep(0.02)
    if os.environ["RANK"] in "{ranks}":
        {fault}
    time.sleep({late})
    raise UserError("connection closed by peer")

sys.exit(stage.guarded(work))
"""


def ends(
    tmp_path, fault: str = "", ranks: str = "1", late: float = 60.0, code: str = PROCESS
) -> tuple[list[int], list[str], float]:
    """Exit codes of two processes, what they say, and the seconds that took."""
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_PORT": tmp_path.name, "TMPDIR": str(tmp_path)}
    code = code.format(fault=fault, ranks=ranks, late=late)
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
    assert seconds < 50


def test_a_process_that_a_library_aborts_is_not_taken_for_one_without_memory(tmp_path):
    codes, said, seconds = ends(tmp_path, "os.abort()")
    assert codes == [2, -6]
    (line,) = said
    assert line.startswith("error: process 1 of 2 was aborted by a library (SIGABRT); ")
    assert "memory" not in line
    assert seconds < 50


SAME = """
import os, sys, time
from rlhf.errors import UserError
from rlhf.pipeline import stage

def work():
    error = ValueError("of the main process")
    if os.environ["RANK"] == "1":
        error.raised_by = 0
        raise UserError("in other words") from error
    time.sleep(0.5)
    raise UserError("a mistake")

sys.exit(stage.guarded(work))
"""


def test_what_was_raised_on_another_process_is_told_in_the_words_of_that_one(tmp_path):
    codes, said, _ = ends(tmp_path, code=SAME)
    assert codes == [2, 2]
    assert said == ["error: a mistake"]


@pytest.mark.parametrize("late", [0.8, 60.0], ids=["the others notice", "the others wait"])
def test_the_first_that_fails_is_the_one_that_is_read_of(tmp_path, late):
    codes, said, seconds = ends(tmp_path, "raise UserError('a mistake')", late=late)
    assert codes == [2, 2]
    assert said == ["error: process 1 of 2: a mistake"]
    assert seconds < 50


def test_processes_that_end_well_leave_no_notes(tmp_path):
    codes, said, _ = ends(tmp_path, "return", ranks="01")
    assert (codes, said) == ([0, 0], [])
    assert not [*tmp_path.glob("rlhf-*")]


def test_what_all_of_them_find_is_said_once_and_of_nobody(tmp_path):
    codes, said, _ = ends(tmp_path, "raise UserError('a mistake')", ranks="01")
    assert codes == [2, 2]
    assert said == ["error: a mistake"]


NODES = """
import os, pathlib, signal, sys, time
from rlhf.errors import UserError
from rlhf.pipeline import node_status, peers, stage

node_status._EVERY, node_status.RESPONDS, peers._LATE, peers._WAIT = 0.1, 2.0, 1.0, 0.3
peers.exchange_folder, node = pathlib.Path, os.environ["GROUP_RANK"]

def work():
    peers.own.join_nodes({shared!r})
    while len(peers.own._all()) < 2:  # each has heard of the other
        time.sleep(0.02)
    if node == "1":
        {fault}
    time.sleep({late})
    raise UserError("connection closed by peer")

sys.exit(stage.guarded(work))
"""


def end_on_nodes(tmp_path, fault: str, late: float) -> tuple[list[int], list[list[str]]]:
    """Exit codes of a process on each of two nodes, which share one folder, and what each says."""
    shared = tmp_path / "run/token"
    shared.mkdir(parents=True)
    code = NODES.format(fault=fault, late=late, shared=str(shared))
    launch = {"WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "MASTER_PORT": tmp_path.name, "LOCAL_RANK": "0"}
    started = []
    for node in ("0", "1"):
        (tmp_path / node).mkdir()
        own = {**os.environ, **launch, "RANK": node, "GROUP_RANK": node, "TMPDIR": str(tmp_path / node)}
        started.append(subprocess.Popen([sys.executable, "-c", code], env=own, stderr=subprocess.PIPE, text=True))
    said = [process.communicate()[1].splitlines() for process in started]
    return [process.returncode for process in started], said


@pytest.mark.parametrize(
    ("fault", "late", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 0.1, -9,
         r"node 1 \(\S+\), with process 1 of 2, is not heard of any more: it was ended, or lost .*"),
        ("raise UserError('a mistake')", 60.0, 2, r"process 1 of 2 on node 1 \(\S+\): a mistake"),
    ],
    ids=["killed", "failed"],
)  # fmt: skip
def test_a_process_of_another_node_is_named_and_nothing_is_left_in_the_run(tmp_path, fault, late, code, said):
    codes, (first, second) = end_on_nodes(tmp_path, fault, late)
    assert not (tmp_path / "run").exists()
    assert codes == [2, code]
    assert re.fullmatch(f"error: {said}", "\n".join(first))
    assert second == ([] if code == -9 else ["error: process 1 of 2: a mistake"])


LOADING = """
import os, signal, sys, time
from rlhf.pipeline import stage

def work():
    if os.environ["RANK"] == "0":
        time.sleep(60)
    import torch.distributed as dist
    dist.init_process_group("gloo")

sys.exit(stage.guarded(work))
"""


@pytest.mark.slow
def test_a_process_that_waits_for_one_that_was_asked_to_stop_ends_with_it(tmp_path):
    """It waits in code that no signal reaches, before the two are connected."""
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "TMPDIR": str(tmp_path),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOADING], env={**environment, "RANK": str(rank)}, stderr=subprocess.DEVNULL
        )
        for rank in range(2)
    ]
    time.sleep(15)
    begin = time.monotonic()
    for process in started:
        process.terminate()
    assert [process.wait() for process in started] == [143, 143]
    assert time.monotonic() - begin < 10
