"""Signals: at once, deferred to the end of a step, twice, in a fork."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rlhf import interrupts
from rlhf.interrupts import Interrupted


@pytest.fixture(autouse=True)
def _listening():
    with interrupts.listening():
        yield


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_what_runs_with_its_own_exit_code(number, code):
    with pytest.raises(Interrupted) as raised:
        os.kill(os.getpid(), number)
    assert raised.value.exit_code == code
    assert interrupts.asked() == number


def test_a_deferred_signal_is_noted_and_raised_behind_the_block():
    reached = []

    def steps():
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(interrupts.asked())

    with pytest.raises(Interrupted):
        steps()
    assert reached == [signal.SIGTERM]


def test_what_may_end_at_once_does_inside_what_is_deferred():
    reached = []

    def rollout():
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            with interrupts.at_once():
                reached.append("sampled")

    with pytest.raises(Interrupted):
        rollout()
    assert not reached


def test_a_signal_to_a_group_and_to_its_leader_is_one():
    def steps():
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        steps()


def test_a_second_signal_ends_the_process_without_another_word():
    code = (
        "import os, signal, time\nfrom rlhf import interrupts\n"
        "with interrupts.listening(), interrupts.deferred():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(1.1)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")


def test_a_fork_ends_as_any_process_does():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"forked")  # a signal before this point is lost by Python's own fork
        time.sleep(60)
        os._exit(0)
    os.read(reader, 6)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_earlier_handlers_come_back():
    code = (
        "import signal\nfrom rlhf import interrupts\nwith interrupts.listening():\n    pass\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, interrupts.asked())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True None\n"


def test_a_reader_that_ended_of_the_same_signal_changes_nothing():
    code = (
        "import os, signal\nfrom rlhf import interrupts\n"
        "reader, writer = os.pipe()\nos.dup2(writer, 2)\nos.close(reader)\n"
        "with interrupts.listening():\n"
        "    try:\n"
        "        with interrupts.deferred():\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n            print('went on')\n"
        "    except interrupts.Interrupted as end:\n        interrupts.say('ended')\n        print(end.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "went on\n130\n"
