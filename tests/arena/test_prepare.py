"""Comparisons prepared ahead."""

from collections import Counter

import pytest

from rlhf.arena import prepare
from rlhf.arena.contestants import Contestant
from rlhf.arena.prepare import Preparer
from rlhf.arena.prompts import Pool
from rlhf.arena.scores import Judges
from rlhf.arena.store import ArenaVotes
from rlhf.config.project import EvaluateConfig
from rlhf.data.records import Prompt, Unusable
from rlhf.errors import UserError
from tests.support.arena import FakeReplier, length


def named(*names, line="{name}: {prompt}"):
    return [Contestant(FakeReplier(name, line.replace("{name}", name))) for name in names]


def preparer(store, contestants, count=5, judges=None, **more):
    pool = Pool([Prompt(f"Question {number}", {"number": number}) for number in range(count)], "file", 0)
    return Preparer(store, pool, contestants, judges or Judges({"length": length}), EvaluateConfig(), 7, **more)


@pytest.fixture
def store(tmp_path):
    with ArenaVotes(tmp_path / "votes.sqlite") as store:
        yield store


def test_each_prompt_comes_once_before_any_comes_twice(store):
    one = preparer(store, named("sft", "dpo", "ppo"))
    while one.wave():
        pass
    made = store.comparisons()
    assert len(made) == 5 * 3
    assert len({comparison.prompt for comparison in made[:5]}) == 5
    keys = Counter((each.prompt, frozenset(reply.policy for reply in each.replies)) for each in made)
    assert set(keys.values()) == {1}
    assert made[0].columns["number"] in range(5)
    assert made[0].origin == "file"
    assert set(made[0].replies[0].scores) == {"length"}
    assert made[0].sampling["max_new_tokens"] == 128


def test_nothing_is_prepared_twice_over_a_restart(store):
    first = preparer(store, named("sft", "dpo"))
    first.wave()
    again = preparer(store, named("sft", "dpo"))
    again.start()
    again.join(20)
    assert again.exhausted
    assert len(store.comparisons()) == 5


def test_a_thread_prepares_no_more_than_annotators_need(store, monkeypatch):
    monkeypatch.setattr(prepare, "WAVE", 4)
    monkeypatch.setattr(prepare, "AHEAD", 2)
    one = preparer(store, named("sft", "dpo"), count=20)
    one.start()
    for _ in range(200):
        if len(store.comparisons()) >= 4:
            break
        one.join(0.02)
    one.join(0.1)
    assert len(store.comparisons()) == 4
    for number in store.unseen("ann")[:3]:
        store.cast(store.show(number, "ann"), "tie", seconds=1.0)
    one.wake()
    for _ in range(200):
        if len(store.comparisons()) == 8:
            break
        one.join(0.02)
    assert len(store.comparisons()) == 8
    one.stop()
    one.join(20)
    assert not one.is_alive()


def test_equal_replies_and_prompts_that_are_refused_are_left_out(store):
    class Picky(FakeReplier):
        def stream(self, prompt, sampling, stop=None):
            if prompt == "Question 1":
                raise Unusable("too long")
            return super().stream(prompt, sampling, stop)

    same = preparer(store, named("sft", "dpo", line="the same"))
    assert same.wave()
    assert not same.wave()
    assert not store.comparisons()
    picky = preparer(store, [*named("sft"), Contestant(Picky("dpo", "no: {prompt}"))])
    picky.wave()
    assert {comparison.prompt for comparison in store.comparisons()} == {f"Question {n}" for n in (0, 2, 3, 4)}
    assert not picky.wave()


def test_a_server_that_is_gone_is_said_and_tried_again(store, monkeypatch, caplog):
    monkeypatch.setattr(prepare, "_PAUSE", 0.05)

    class Gone(FakeReplier):
        asked = 0

        def stream(self, prompt, sampling, stop=None):
            self.asked += 1
            if self.asked < 3:
                raise UserError("http://there/v1: no answer")
            return super().stream(prompt, sampling, stop)

    one = preparer(store, [*named("sft"), Contestant(Gone("there", "far: {prompt}"))], count=1)
    one.start()
    one.join(20)
    assert one.exhausted
    assert one.problem is None
    assert len(store.comparisons()) == 1
    assert "http://there/v1: no answer" in caplog.text


def test_a_judge_that_compares_gives_the_share_of_each(store):
    class Likes:
        def prefer(self, prompts, first, second):
            return [1.0 if "sft" in str(text) else 0.0 for text in first]

    one = preparer(store, named("sft", "dpo"), judges=Judges({}, {"gpt": Likes()}))
    one.wave()
    for comparison in store.comparisons():
        assert {reply.policy: reply.scores["gpt"] for reply in comparison.replies} == {"sft": 1.0, "dpo": 0.0}


def test_a_judge_that_fails_gives_no_scores_and_is_said_once(store, caplog):
    def fails(prompts, completions, **columns):
        raise UserError("it wants a column")

    one = preparer(store, named("sft", "dpo"), judges=Judges({"fails": fails, "length": length}))
    one.wave()
    scores = [reply.scores for comparison in store.comparisons() for reply in comparison.replies]
    assert all(score["fails"] is None and score["length"] > 0 for score in scores)
    assert caplog.text.count("it wants a column") == 1
