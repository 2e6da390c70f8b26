"""Votes as rows of data."""

from rlhf.data.vote_rows import demonstration_rows, feedback_rows, preference_rows
from tests.support.votes import vote

MESSAGES = [{"role": "user", "content": "hello"}]


def test_pairs_are_what_most_annotators_say():
    votes = [
        vote("second", comparison=1, annotator="a", columns={"name": "Ann"}),
        vote("second", comparison=1, annotator="b", columns={"name": "Ann"}),
        vote("first", comparison=1, annotator="c", columns={"name": "Ann"}),
        vote("first", comparison=2, annotator="a"),
        vote("second", comparison=2, annotator="b"),
        vote("tie", comparison=3),
        vote("skip", comparison=4),
        vote("first", comparison=5, prompt=MESSAGES),
    ]
    assert preference_rows(votes) == [
        {
            "name": "Ann", "prompt": "hello", "chosen": "dpo says", "rejected": "sft says", "votes_for": 2,
            "votes_against": 1,
        },
        {
            "prompt": MESSAGES, "chosen": [{"role": "assistant", "content": "sft says"}],
            "rejected": [{"role": "assistant", "content": "dpo says"}], "votes_for": 1, "votes_against": 0,
        },
    ]  # fmt: skip


def test_edits_are_demonstrations():
    rows = demonstration_rows(
        [vote("tie", edit="Hello, Ann."), vote("first"), vote("skip", edit="Yes.", prompt=MESSAGES)]
    )
    assert rows == [
        {"prompt": "hello", "completion": "Hello, Ann."},
        {"prompt": MESSAGES, "completion": [{"role": "assistant", "content": "Yes."}]},
    ]


def test_thumbs_and_both_bad_are_feedback():
    rows = feedback_rows(
        [vote("neither"), vote("first", good=(True, None)), vote("second", good=(False, True)), vote("tie")]
    )
    assert [(row["completion"], row["label"]) for row in rows] == [
        ("sft says", False), ("dpo says", False), ("sft says", True), ("sft says", False), ("dpo says", True),
    ]  # fmt: skip
