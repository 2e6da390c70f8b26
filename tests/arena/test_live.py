"""Comparisons that are being written."""

import threading

import pytest

from rlhf.arena import live as live_module
from rlhf.arena.contestants import Contestant
from rlhf.arena.live import Live, TooMany
from rlhf.arena.scores import Judges
from rlhf.arena.store import ArenaVotes
from rlhf.config.project import EvaluateConfig
from rlhf.data.records import Unusable
from tests.support.arena import SAMPLING, FakeReplier, contestants, fill


@pytest.fixture
def store(tmp_path):
    with ArenaVotes(tmp_path / "votes.sqlite") as store:
        yield store


class Slow(FakeReplier):
    """Writes a word, and no more until it is told to."""

    def __init__(self, name):
        super().__init__(name)
        self.go = threading.Event()

    def stream(self, prompt, sampling, stop=None):
        replier = self

        class Stream:
            finished = True

            def __iter__(self):
                yield "one "
                while not (replier.go.wait(0.01) or stop.is_set()):
                    pass
                yield "two"

        return Stream()


def made(store, *repliers):
    return Live(store, [Contestant(replier) for replier in repliers], Judges(), EvaluateConfig())


def ended(live, writing):
    live.people_first()
    assert writing.ended
    return writing.events[-1]


def test_replies_are_kept_in_the_order_in_which_they_were_watched(store):
    live = Live(store, contestants("sft", "dpo"), Judges(), EvaluateConfig())
    orders = set()
    for number in range(12):
        writing = live.start("ann", f"Question {number}")
        kind, data = ended(live, writing)
        assert kind == "ready"
        ballot = store.ballot(data["ballot"], "ann")
        assert [reply.policy for reply in ballot.shown_replies] == [side.name for side in writing.sides]
        assert ballot.comparison.origin == "typed"
        assert not store.unseen("ben")
        orders.add(writing.sides[0].name)
    assert orders == {"sft", "dpo"}


def test_the_two_compared_least_reply(store):
    fill(store, 1, ("sft", "dpo"))
    store.add("x", store.comparison(1).replies[:1] * 2, sampling=SAMPLING)
    live = Live(store, contestants("sft", "dpo"), Judges(), EvaluateConfig())
    three = Live(store, contestants("sft", "dpo", "ppo"), Judges(), EvaluateConfig())
    assert {side.name for side in live.start("ann", "a").sides} == {"sft", "dpo"}
    assert "ppo" in {side.name for side in three.start("ann", "b").sides}
    assert {side.name for side in three.start("ben", "c", pair=["sft", "dpo"]).sides} == {"sft", "dpo"}
    live.people_first()
    three.people_first()


def test_a_new_prompt_ends_the_replies_to_the_one_before(store):
    slow = Slow("sft")
    live = made(store, slow, FakeReplier("dpo"))
    first = live.start("ann", "one")
    second = live.start("ann", "two")
    slow.go.set()
    assert ended(live, second)[0] == "ready"
    assert ended(live, first)[0] == "failed"
    assert len(store.comparisons()) == 1


def test_only_so_many_at_a_time(store, monkeypatch):
    monkeypatch.setattr(live_module, "AT_ONCE", 2)
    slow = Slow("sft")
    live = made(store, slow, FakeReplier("dpo"))
    writings = [live.start(name, "one") for name in ("ann", "ben")]
    with pytest.raises(TooMany):
        live.start("cleo", "one")
    live.stop()
    assert {ended(live, writing)[0] for writing in writings} == {"failed"}


def test_a_prompt_that_a_policy_refuses_and_one_that_breaks(store, caplog):
    class Refuses(FakeReplier):
        def stream(self, prompt, sampling, stop=None):
            raise Unusable("400 tokens leave no room") if prompt == "long" else RuntimeError("secret detail")

    live = made(store, Refuses("sft"), FakeReplier("dpo"))
    assert ended(live, live.start("ann", "long"))[1]["message"] == "400 tokens leave no room"
    assert "secret" not in ended(live, live.start("ann", "other"))[1]["message"]
    assert "secret detail" in caplog.text
    assert not store.comparisons()


def test_a_prompt_that_is_refused_stops_nothing(store, monkeypatch):
    monkeypatch.setattr(live_module, "AT_ONCE", 1)
    slow = Slow("sft")
    live = made(store, slow, FakeReplier("dpo"))
    first = live.start("ann", "one")
    with pytest.raises(TooMany):
        live.start("ann", "two")
    slow.go.set()
    assert ended(live, first)[0] == "ready"
