import pytest

from rlhf.data.records import (
    Demonstration,
    Feedback,
    Image,
    Labelled,
    Preference,
    Prompt,
    Spanned,
    Unusable,
    as_chat,
    as_role,
    demonstration_of,
)
from rlhf.errors import UserError

EXTRA, ORIGIN = {"score": 3}, "f.jsonl:7"
USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def test_demonstrations_take_what_holds_a_good_reply():
    demonstration = Demonstration("p", "c", EXTRA, ORIGIN)
    assert as_role(demonstration, "demonstrations") is demonstration
    assert as_role(Preference("p", "c", "r", EXTRA, ORIGIN), "demonstrations") == demonstration
    assert as_role(Feedback("p", "c", True, EXTRA, ORIGIN), "demonstrations") == demonstration
    for record in (Labelled("t", ("good",)), Spanned("It is blue.", "Colour?", ((6, 10),))):
        assert as_role(record, "demonstrations") is record
    with pytest.raises(Unusable, match="negative feedback"):
        as_role(Feedback("p", "c", False), "demonstrations")
    with pytest.raises(UserError, match=r"^f.jsonl:7: data.demonstrations got a prompt .* serve as prompts"):
        as_role(Prompt("p", EXTRA, ORIGIN), "demonstrations")


def test_plain_text_is_read_as_a_conversation():
    asked = [{"role": "system", "content": "Be brief."}, USER]
    assert as_chat(Preference(" hi", " hello", "no\n", {"system": "Be brief.", "n": 1}, ORIGIN)) == Preference(
        asked, [REPLY], [{"role": "assistant", "content": "no"}], {"n": 1}, ORIGIN
    )
    assert as_chat(Demonstration("hi", "hello", {"system": None})) == Demonstration([USER], [REPLY], {"system": None})
    assert as_chat(Feedback("hi", "hello", False)) == Feedback([USER], [REPLY], False)
    assert as_chat(Prompt("hi", EXTRA, ORIGIN, "c")) == Prompt([USER], EXTRA, ORIGIN, "c")
    for record in (Demonstration([USER], [REPLY]), Labelled("t", ("good",)), Spanned("c", "q", ())):
        assert as_chat(record) is record
    with pytest.raises(Unusable, match="empty prompt"):
        as_chat(Demonstration("", "text"))


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (Feedback("p", "c", True, {}, ORIGIN), "binary feedback"),
        (Demonstration("p", "c", {}, ORIGIN), "a demonstration"),
        (Prompt("p", {}, ORIGIN), "a prompt"),
        (Labelled("t", ("good",), False, {}, ORIGIN), "a labelled text or image"),
        (Spanned("c", "q", (), {}, ORIGIN), "a question about a text"),
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
        Demonstration([USER], [REPLY], EXTRA, ORIGIN),
        Preference([USER], [REPLY], [], EXTRA, ORIGIN),
        Feedback([USER], [REPLY], False, EXTRA, ORIGIN),
        Prompt([USER], EXTRA, ORIGIN),
    ):
        assert as_role(record, "prompts") == as_role(record, "rollouts") == Prompt([USER], EXTRA, ORIGIN)
    for record in (
        Preference("p", "c", "r", EXTRA, ORIGIN),
        Feedback("p", "c", False, EXTRA, ORIGIN),
        Prompt("p", EXTRA, ORIGIN),
    ):
        assert as_role(record, "prompts") == Prompt("p", EXTRA, ORIGIN)


def test_a_prompt_says_what_is_right_in_its_columns():
    plain = as_role(Demonstration("p", "c", EXTRA, ORIGIN), "prompts")
    assert plain == Prompt("p", {"reference": "c", "score": 3}, ORIGIN)
    own = as_role(Demonstration("p", "c", {"reference": "r"}), "prompts")
    assert own.extra == {"reference": "r"}
    one = as_role(Labelled("p", ("good",), False, EXTRA, ORIGIN), "prompts")
    assert one == Prompt("p", {"score": 3, "label": "good"}, ORIGIN)
    image = as_role(Labelled(Image("a.png"), (), True), "prompts")
    assert image == Prompt("a.png", {"label": []})
    assert isinstance(image.prompt, Image)
    assert as_role(Labelled("p", ("a", "b"), True), "prompts").extra == {"label": ["a", "b"]}


def test_a_question_about_a_text_as_a_prompt_has_the_columns_of_squad():
    record = Spanned("It is blue.", "Colour?", ((6, 10), (0, 11)), EXTRA, ORIGIN)
    answers = {"text": ["blue", "It is blue."], "answer_start": [6, 0]}
    columns = {"score": 3, "question": "Colour?", "context": "It is blue.", "answers": answers}
    assert as_role(record, "prompts") == Prompt("Colour?\n\nIt is blue.", columns, ORIGIN, "It is blue.")
    without = as_role(Spanned("It is blue.", "Size?", ()), "prompts")
    assert without.extra["answers"] == {"text": [], "answer_start": []}


def test_unknown_role():
    with pytest.raises(ValueError, match="demonstrations, preferences, feedback, prompts"):
        as_role(Prompt("p"), "reward")


def test_a_conversation_is_parted_before_its_first_reply_and_ends_with_its_last():
    record = demonstration_of([USER, REPLY, USER, REPLY, USER], EXTRA, ORIGIN)
    assert record == Demonstration([USER], [REPLY, USER, REPLY], EXTRA, ORIGIN)
    assert demonstration_of([USER], {}, "") == Demonstration([USER], [])
    with pytest.raises(Unusable, match="starts with the assistant"):
        demonstration_of([REPLY, USER], {}, "")
