"""What a process tells of its work: in order, whole, and without nonsense about the time left."""

import json
import os

import pytest

from rlhf import progress
from rlhf.progress import Phase


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "progress.json"


def test_time_left_is_that_of_measured_units_and_not_of_the_first(clock):
    work = Phase("training", 10)
    assert work.state()["left"] is None
    clock[0] += 60  # compiling
    work.update()
    assert work.state()["left"] is None
    clock[0] += 2
    work.update()
    assert work.state()["left"] is None, "two seconds say nothing"
    clock[0] += 2
    work.update()
    assert work.state()["left"] == pytest.approx(7 * 2)


def test_time_left_follows_the_later_half(clock):
    work = Phase("training", 100)
    for pause in [1.0] * 20 + [4.0] * 20:
        clock[0] += pause
        work.update()
    assert work.state()["left"] == pytest.approx(60 * 4, rel=0.01)


def test_what_an_earlier_process_did_is_not_measured(clock):
    work = Phase("training", 100, "steps", done=50)
    for step in range(51, 55):
        clock[0] += 5
        work.reach(step)
    assert work.state()["left"] == pytest.approx(46 * 5)


def test_a_long_work_is_told_by_few_points(clock):
    work = Phase("rows", 1e6)
    for _ in range(10_000):
        clock[0] += 0.01
        work.update()
    assert len(work._marks._points) <= 200
    assert work.state()["left"] == pytest.approx(9_900, rel=0.02)


def test_phases_lie_in_each_other_and_the_file_is_whole(path, clock):
    with progress.watching(path):
        with progress.phase("training", 20, "steps") as training:
            training.reach(3)
            progress.show({"loss": 1.5})
            with progress.phase("sampling", 8, "prompts"):
                told = progress.read(path)
            assert [(part["what"], part["done"], part["total"]) for part in told["phases"]] == [
                ("training", 3, 20), ("sampling", 0, 8)
            ]  # fmt: skip
            assert told["numbers"] == {"loss": 1.5}
            clock[0] += 1
            training.reach(4)
            assert [part["what"] for part in progress.read(path)["phases"]] == ["training"]
        assert [file.name for file in path.parent.iterdir()] == ["progress.json"]
    assert not progress.watched()


def test_a_phase_that_ends_by_an_error_ends_those_in_it(path, clock):
    def fail():
        with progress.phase("training"):
            progress.begin(Phase("held-out rows"))
            raise KeyError

    with progress.watching(path), pytest.raises(KeyError):
        fail()
    with progress.watching(path), progress.phase("saving"):
        assert [part["what"] for part in progress.read(path)["phases"]] == ["saving"]


def test_tokens_a_second(path, clock):
    with progress.watching(path), progress.phase("training"):
        progress.count_tokens(0)
        for _ in range(6):
            clock[0] += 1
            progress.count_tokens(500)
        assert progress.read(path)["tokens_per_second"] == pytest.approx(500)


def test_a_fork_writes_nothing(path):
    with progress.watching(path), progress.phase("training", 2, "steps") as training:
        if (child := os.fork()) == 0:
            try:
                progress.begin(Phase("of the fork"))
                training.reach(2)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert [(part["what"], part["done"]) for part in progress.read(path)["phases"]] == [("training", 0)]


def test_nothing_is_written_where_nobody_watches_or_can(tmp_path):
    with progress.phase("training") as training:
        training.update()
        progress.show({"loss": 1.0})
    with progress.watching(tmp_path / "gone" / "progress.json"), progress.phase("training") as training:
        training.update()
    assert not list(tmp_path.iterdir())


def test_items_are_counted_as_they_are_done(path, clock):
    done = []
    with progress.watching(path):
        for _ in progress.each("abc", "letters", ""):
            clock[0] += 1
            progress.show({})
            done.append(progress.read(path)["phases"][0]["done"])
    assert done == [0, 1, 2]


def test_a_file_that_holds_no_json_tells_nothing(path):
    path.write_text('{"at": ')
    assert progress.read(path) is None
    path.write_text(json.dumps({"at": 1}))
    assert progress.read(path) == {"at": 1}
