"""What the processes of a launch tell each other, and what a process alone gets from the same calls."""

import json

import pytest

from rlhf import processes
from rlhf.errors import UserError
from tests.support.launches import on_two_processes


def test_two_processes_are_told_the_same(tmp_path):
    codes, said = on_two_processes(["-m", "tests.support.exchanging", tmp_path])
    assert codes == [0, 0], said[-3000:]
    first, second = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1))
    assert {name: (first[name], second[name]) for name in first} == {
        "gathered": (["of 0", "of 1"],) * 2,
        "broadcast": ("of 0",) * 2,
        "from main": ({"made by": 0},) * 2,
        "main first": ("by 0",) * 2,
        "together": (0, 1),
        "mistake": (["UserError", "a mistake", False], ["UserError", "a mistake", True]),
        "refused": (["Refused", "no such adapter", False], ["SamplerFailed", "no such adapter", True]),
        "unknown": (["Unknown", "no file", False], ["ValueError", "no file", True]),
        "missing": (["KeyError", "'name'", False], ["LookupError", "'name'", True]),
        "one": (["UserError", "of the second", True], ["UserError", "of the second", False]),
        "both": (["UserError", "of the first", False], ["UserError", "of the first", True]),
        "slow": ("slow",) * 2,
    }


def test_one_process_exchanges_nothing():
    assert (processes.rank(), processes.count(), processes.node(), processes.nodes()) == (0, 1, 0, 1)
    assert (processes.gathered(3), processes.broadcast(3), processes.from_main(lambda: 3)) == ([3], 3, 3)
    assert (processes.main_first(lambda: 3), processes.together(lambda: 3)) == (3, 3)

    def mistake():
        raise UserError("a mistake")

    for exchange in (processes.from_main, processes.main_first, processes.together):
        with pytest.raises(UserError, match="a mistake") as raised:
            exchange(mistake)
        assert not processes.raised_elsewhere(raised.value)
