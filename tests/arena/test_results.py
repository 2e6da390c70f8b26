"""What the page of results shows."""

import json

import pytest

from rlhf.arena.pages import strip
from rlhf.arena.results import base_label, policy_label, preferences, results
from tests.support.votes import vote


def test_results_of_hand_made_votes():
    votes = [
        vote("second", comparison=1, prompt="one", seconds=2.0),
        vote("second", comparison=2, prompt="two", seconds=4.0, edit="So."),
        vote("tie", comparison=2, prompt="two", annotator="ben", seconds=9.0),
        vote("skip", comparison=1, prompt="one", annotator="ben", seconds=1.0),
    ]
    found = results(votes)
    assert (found.votes, found.comparisons, found.edits, found.seconds) == (4, 2, 1, 3.0)
    assert found.policies == ["dpo", "sft"]
    assert found.rates["dpo", "sft"]["rate"] == pytest.approx((1 + 0.75) / 2)
    assert [(each.name, each.votes, each.skipped, each.edits, each.seconds) for each in found.annotators] == [
        ("ann", 2, 0, 1, 3.0), ("ben", 2, 1, 0, 5.0),
    ]  # fmt: skip
    assert found.agreement["comparisons"] == 1


def test_what_is_preferred_comes_first_and_each_pair_once():
    votes = [vote("second", comparison=n, prompt=str(n)) for n in range(9)]
    votes += [vote("tie", ("dpo", "ppo"), comparison=n + 20, prompt=str(n)) for n in range(4)]
    votes += [vote("second", ("sft", "ppo"), comparison=40)]
    found = [(rate["policy"], rate["baseline"], decided) for rate, decided in preferences(results(votes))]
    assert found[0] == ("dpo", "sft", True)
    assert found[1:] == [("ppo", "sft", False), ("dpo", "ppo", False)]


def test_no_votes():
    found = results([])
    assert (found.votes, found.ratings, found.seconds) == (0, [], None)
    assert strip(found) == {}


def test_a_strip_spans_all_intervals():
    votes = [vote("second", comparison=n, prompt=str(n)) for n in range(6)] + [vote("first", comparison=9, prompt="9")]
    places = strip(results(votes))
    ends = [end for low, _, high in places.values() for end in (low, high)]
    assert (min(ends), max(ends)) == (20.0, 980.0)
    assert all(low <= at <= high for low, at, high in places.values())
    assert places["dpo"][1] > places["sft"][1]


def test_labels():
    names = ["base", "dpo", "dpo@1", "http://127.0.0.1:8000/v1 some-model", "../etc"]
    assert [policy_label(name) for name in names] == ["Base", "DPO", "DPO@1", *names[3:]]


def test_the_base_of_a_later_round_is_what_it_starts_from(tmp_path):
    assert base_label(tmp_path) == "Base"
    record = {"round": 3, "start": "dpo", "leaves": "dpo", "votes": 1, "rows": {}}
    (tmp_path / "round.json").write_text(json.dumps(record))
    assert base_label(tmp_path) == "Round 2's DPO"
    assert policy_label("base", base_label(tmp_path)) == "Round 2's DPO"
