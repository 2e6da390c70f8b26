"""Columns are matched by their names and by what they hold."""

import pytest

from rlhf.init.columns import Sample, propose, ratings

Q, YES, NO = "Why is it {n}?", "Because of {n}.", "No idea."
TURNS = [{"from": "human", "value": Q}, {"from": "gpt", "value": YES}]
MESSAGES = [{"role": "user", "content": Q}, {"role": "assistant", "content": YES}]
SIDES = [{"role": "user", "content": Q}, {"role": "assistant", "content": NO}]


def sample_of(row, count=40):
    """Rows like this one; a tuple of values takes turns, and `{n}` is the number of the row."""
    sample = Sample()
    for number in range(count):
        made = {key: cell[number % len(cell)] if isinstance(cell, tuple) else cell for key, cell in row.items()}
        sample.add({key: cell.format(n=number) if isinstance(cell, str) else cell for key, cell in made.items()})
    return sample


@pytest.mark.parametrize(
    ("row", "kind", "layout", "columns"),
    [
        ({"prompt": Q, "good": YES, "bad": NO}, "preferences", "preference", {"chosen": "good", "rejected": "bad"}),
        ({"q": 1, "question": Q, "chosen_response": YES, "rejected_response": NO}, "preferences", "preference",
         {"prompt": "question", "chosen": "chosen_response", "rejected": "rejected_response"}),
        ({"better": f"\n\nHuman: {Q}\n\nAssistant: {YES}", "worse": f"\n\nHuman: {Q}\n\nAssistant: {NO}"},
         "preferences", "hh", {"chosen": "better", "rejected": "worse"}),
        ({"prompt": Q, "chosen": YES, "rejected ": NO}, "preferences", "preference", {"rejected": "rejected "}),
        ({"question": Q, "chosen": MESSAGES, "rejected": SIDES}, "preferences", "preference", {}),
        ({"question": Q, "response": YES}, "demonstrations", "prompt_completion",
         {"prompt": "question", "completion": "response"}),
        ({"system_prompt": "Be brief.", "question": Q, "response": YES}, "demonstrations", "prompt_completion",
         {"prompt": "question", "completion": "response", "system": "system_prompt"}),
        ({"question": Q, "answer": YES}, "demonstrations", "gsm8k", {}),
        ({"instruction": Q, "input": "", "output": YES}, "demonstrations", "alpaca", {}),
        ({"document": Q, "summary": YES}, "demonstrations", "text_to_text", {}),
        ({"dialog": TURNS}, "demonstrations", "sharegpt", {"conversations": "dialog"}),
        ({"conversation": MESSAGES}, "demonstrations", "messages", {"messages": "conversation"}),
        ({"text": Q, "label": (0, 1)}, "labels", "labelled", {}),
        ({"query": Q, "intent": ("lost", "late")}, "labels", "labelled", {"text": "query", "label": "intent"}),
        ({"text": Q, "category": ("lost", "late")}, "labels", "labelled", {"label": "category"}),
        ({"text": Q, "source": "web"}, "text", "text", {}),
        ({"instruction": Q}, "prompts", "prompt_only", {"prompt": "instruction"}),
        ({"prompt": MESSAGES[:1]}, "prompts", "prompt_only", {}),
    ],
)  # fmt: skip
def test_what_rows_are(row, kind, layout, columns):
    reading = propose(sample_of(row))
    assert (reading.kind, reading.format, reading.columns) == (kind, layout, columns)


@pytest.mark.parametrize(
    ("row", "values"),
    [
        ({"question": Q, "response_a": YES, "response_b": NO, "winner": ("model_a", "model_b", "tie", "tie (bothbad)")},
         {"model_a": 1, "model_b": 2, "tie": None, "tie (bothbad)": None}),
        ({"question": Q, "response_0": YES, "response_1": NO, "better_response_id": (0, 1)}, {"0": 1, "1": 2}),
        ({"question": Q, "answer1": YES, "answer2": NO, "choice": ("answer2", "answer1")},
         {"answer1": 1, "answer2": 2}),
        ({"question": Q, "replyLeft": YES, "replyRight": NO, "verdict": ("left", "right")}, {"left": 1, "right": 2}),
    ],
)  # fmt: skip
def test_two_replies_and_the_better_one(row, values):
    reading = propose(sample_of(row))
    assert (reading.kind, reading.format, reading.values) == ("preferences", "llmbar", {"label": values})
    assert list(reading.columns) == ["input", "output_1", "output_2", "label"]


def test_numbers_that_mean_what_the_format_says_need_no_values():
    row = {"instruction": Q, "input": "", "output_1": YES, "output_2": NO, "preference": (1, 2)}
    reading = propose(sample_of(row))
    assert (reading.format, reading.values) == ("llmbar", {})
    assert reading.columns == {"input": "instruction", "label": "preference", "other_input": "input"}


@pytest.mark.parametrize(
    ("column", "cells", "values"),
    [
        ("thumb", ("up", "down"), {"up": True, "down": False}),
        ("rating", ("👍", "👎"), {"👍": True, "👎": False}),
        ("helpful", (True, False), {}),
        ("label", (1, 0), {}),
    ],
)
def test_judgements_whose_meaning_is_plain(column, cells, values):
    sample = sample_of({"question": Q, "response": YES, column: cells})
    reading = propose(sample)
    assert (reading.kind, reading.format) == ("feedback", "kto")
    assert reading.values == ({"label": values} if values else {})
    assert ratings(sample) is None


def test_a_scale_is_asked_about():
    sample = sample_of({"question": Q, "response": YES, "stars": (1, 2, 3, 4, 5)})
    assert ratings(sample) == ("stars", ["1", "2", "3", "4", "5"])
    assert propose(sample).kind == "demonstrations"
    reading = propose(sample, ["4"])
    assert reading.values == {"label": {"1": False, "2": False, "3": False, "4": True, "5": True}}
    assert propose(sample, ["3", "5"]).values["label"] == {str(n): n in (3, 5) for n in range(1, 6)}


def test_values_behind_the_first_rows_count():
    sample = sample_of({"prompt": Q, "response": YES, "thumb": ("up",)}, 600)
    sample.add({"prompt": "Why?", "response": "So.", "thumb": "down"})
    assert propose(sample).values == {"label": {"up": True, "down": False}}


@pytest.mark.parametrize(
    ("prompt", "reply", "chat"),
    [("May my dog come?", "Yes.", True), ("Q: May my dog come?\nA:", " Yes.", False), ("He said", " yes.", False)],
)
def test_plain_prompts_become_conversations_unless_they_say_where_the_reply_begins(prompt, reply, chat):
    assert propose(sample_of({"prompt": prompt, "chosen": reply, "rejected": f"{reply}!"})).chat is chat


@pytest.mark.parametrize(
    "row",
    [
        {"alpha": Q, "beta": YES},
        {"x": 1, "y": 2.5},
        {"history": Q, "human_ref_A": YES, "human_ref_B": NO, "labels": (0, 1)},  # nobody says which side 1 is
        {"prompts": {"a": [1]}, "chosen_at": "today"},
    ],
)
def test_what_cannot_be_told_is_not_guessed(row):
    assert propose(sample_of(row)) is None


def test_a_text_that_hardly_repeats_is_no_class():
    assert propose(sample_of({"text": Q, "topic": "about {n}"})).kind == "text"


def test_what_a_format_or_a_pair_says_is_no_rating():
    sides = {"input": Q, "output_1": YES, "output_2": NO, "label": (1, 2)}
    assert ratings(sample_of(sides)) is None
    assert propose(sample_of(sides)).format == "llmbar"
    assert ratings(sample_of({"prompt": Q, "chosen": YES, "rejected": NO, "response": YES, "score": (1, 2, 3)})) is None
