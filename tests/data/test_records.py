import pytest

from rlhf.data.records import Demonstration, Feedback, Labelled, Preference, Prompt, Unusable, as_role, demonstration_of
from rlhf.errors import UserError

EXTRA, ORIGIN = {"score": 3}, "f.jsonl:7"
USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def test_demonstrations_take_what_holds_a_good_reply():
    demonstration = Demonstration("p", "c", EXTRA, ORIGIN)
    assert as_role(demonstration, "demonstrations") is demonstration
    assert as_role(Preference("p", "c", "r", EXTRA, ORIGIN), "demonstrations") == demonstration
    assert as_role(Feedback("p", "c", True, EXTRA, ORIGIN), "demonstrations") == demonstration
    labelled = Labelled("t", 1)
    assert as_role(labelled, "demonstrations") is labelled
    with pytest.raises(Unusable, match="negative feedback"):
        as_role(Feedback("p", "c", False), "demonstrations")
    with pytest.raises(UserError, match=r"^f.jsonl:7: data.demonstrations got a prompt .* serve as prompts"):
        as_role(Prompt("p", EXTRA, ORIGIN), "demonstrations")


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (Feedback("p", "c", True, {}, ORIGIN), "binary feedback"),
        (Demonstration("p", "c", {}, ORIGIN), "a demonstration"),
        (Prompt("p", {}, ORIGIN), "a prompt"),
        (Labelled("t", 0, {}, ORIGIN), "a labelled text"),
    ],
)
def test_preferences_take_pairs_only_and_say_what_the_row_is_good_for(record, what):
    with pytest.raises(UserError, match=rf"^f.jsonl:7: data.preferences got {what}.*it can serve as .*prompts"):
        as_role(record, "preferences")
    pair = Preference("p", "c", "r")
    assert as_role(pair, "preferences") is pair


def test_feedback_takes_single_judgements_and_pairs():
    for record in (Feedback("p", "c", False), Preference("p", "c", "r")):
        assert as_role(record, "feedback") is record
    with pytest.raises(UserError, match=r"^f.jsonl:7: data.feedback got a demonstration"):
        as_role(Demonstration("p", "c", {}, ORIGIN), "feedback")


def test_prompts_take_anything_and_keep_the_other_columns():
    for record in (
        Demonstration("p", "c", EXTRA, ORIGIN),
        Preference("p", "c", "r", EXTRA, ORIGIN),
        Feedback("p", "c", False, EXTRA, ORIGIN),
        Prompt("p", EXTRA, ORIGIN),
        Labelled("p", 1, EXTRA, ORIGIN),
    ):
        assert as_role(record, "prompts") == Prompt("p", EXTRA, ORIGIN)


def test_unknown_role():
    with pytest.raises(ValueError, match="demonstrations, preferences, feedback, prompts"):
        as_role(Prompt("p"), "reward")


def test_a_conversation_is_parted_before_its_first_reply_and_ends_with_its_last():
    record = demonstration_of([USER, REPLY, USER, REPLY, USER], EXTRA, ORIGIN)
    assert record == Demonstration([USER], [REPLY, USER, REPLY], EXTRA, ORIGIN)
    assert demonstration_of([USER], {}, "") == Demonstration([USER], [])
    with pytest.raises(Unusable, match="starts with the assistant"):
        demonstration_of([REPLY, USER], {}, "")
