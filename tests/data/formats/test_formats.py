"""Each format: a row it is recognised by, the record it becomes, and its mistakes."""

import random

import pytest

from rlhf.data.formats import find, formats
from rlhf.data.plain import Opaque
from rlhf.data.records import Demonstration, Feedback, Image, Labelled, Preference, Prompt, Spanned, Unusable
from rlhf.errors import UserError


def user(content):
    return {"role": "user", "content": content}


def reply(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
Q, A, B = user("Sky?"), reply("Blue."), reply("Green.")
A_CLASS = "column 'label' must be the name or number of a class, or a list of these"
HH = "\n\nHuman: Sky?\n\nAssistant: {}"

DOT = Image(
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
SKY = "The sky is blue."


def spans(text, start):
    """The answers of SQuAD."""
    return {"text": [text], "answer_start": [start]}


CASES = [
    # name, row, what is expected less extra and origin, extra
    ("prompt_completion", {"prompt": "Sky?", "completion": " Blue."}, Demonstration("Sky?", " Blue.")),
    ("prompt_completion", {"prompt": [Q], "completion": [A]}, Demonstration([Q], [A])),
    ("prompt_completion", {"prompt": "Sky?", "completion": None}, Demonstration("Sky?", "")),
    (
        "prompt_completion",
        {"prompt": "Sky?", "completion": "x", "label": "poem"},
        Demonstration("Sky?", "x", {"label": "poem"}),
    ),
    ("messages", {"messages": [SYSTEM, Q, A, Q, B]}, Demonstration([SYSTEM, Q], [A, Q, B])),
    ("messages", {"messages": [Q], "id": 4}, Demonstration([Q], [], {"id": 4})),
    ("preference", {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}, Preference("Sky?", "Blue.", "Green.")),
    ("preference", {"prompt": [Q], "chosen": [A], "rejected": [B]}, Preference([Q], [A], [B])),
    ("preference", {"prompt": [Q], "chosen": [Q, A], "rejected": [Q, B]}, Preference([Q], [A], [B])),
    ("preference", {"prompt": [Q], "chosen": [A], "rejected": []}, Preference([Q], [A], [])),
    (
        "preference",
        {"chosen": [SYSTEM, Q, A], "rejected": [SYSTEM, Q, B], "n": 1},
        Preference([SYSTEM, Q], [A], [B], {"n": 1}),
    ),
    ("preference", {"chosen": [Q, A], "rejected": [Q]}, Preference([Q], [A], [])),
    ("preference", {"chosen": [Q, A], "rejected": None}, Preference([Q], [A], [])),
    ("preference", {"chosen": [Q, A], "rejected": [Q, A]}, Preference([Q], [A], [A])),
    (
        "preference",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        Preference("The sky is", " blue.", " green."),
    ),
    (
        "preference",
        {"chosen": "Q: Sky?\nA: It is blue.", "rejected": "Q: Sky?\nA: It is green."},
        Preference("Q: Sky?\nA:", " It is blue.", " It is green."),
    ),
    (  # of two turns the last; "Answer:" is no speaker of this transcript
        "preference",
        {"chosen": "Q: a\nA: b\nQ: c\nA: d\nAnswer: e", "rejected": "Q: a\nA: b\nQ: c\nA: d\nAnswer: f"},
        Preference("Q: a\nA: b\nQ: c\nA:", " d\nAnswer: e", " d\nAnswer: f"),
    ),
    (
        "preference",
        {"chosen": "### Input:\nSky?\n### Response:\nIt is.", "rejected": "### Input:\nSky?\n### Response:\nIt"},
        Preference("### Input:\nSky?\n### Response:\n", "It is.", "It"),
    ),
    (
        "preference",
        {"chosen": "<|im_start|>assistant\nYes!", "rejected": "<|im_start|>assistant\nYes, no."},
        Preference("<|im_start|>assistant\n", "Yes!", "Yes, no."),
    ),
    ("kto", {"prompt": "Sky?", "completion": "Blue.", "label": True}, Feedback("Sky?", "Blue.", True)),
    ("kto", {"prompt": [Q], "completion": [B], "label": 0}, Feedback([Q], [B], False)),
    ("kto", {"prompt": "Sky?", "completion": "Blue.", "label": "False"}, Feedback("Sky?", "Blue.", False)),
    ("prompt_only", {"prompt": "Sky?", "answer": "blue"}, Prompt("Sky?", {"answer": "blue"})),
    ("prompt_only", {"prompt": [SYSTEM, Q]}, Prompt([SYSTEM, Q])),
    ("text", {"text": "Once."}, Demonstration("", "Once.")),
    ("text", {"text": "Once.", "label": 0.5}, Demonstration("", "Once.", {"label": 0.5})),
    ("labelled", {"text": "Good.", "label": 1}, Labelled("Good.", ("1",))),
    ("labelled", {"text": "Bad.", "label": "0"}, Labelled("Bad.", ("0",))),
    ("labelled", {"text": "Good.", "label": "1.0"}, Labelled("Good.", ("1",))),
    ("labelled", {"text": "Good.", "label": 2.0}, Labelled("Good.", ("2",))),
    ("labelled", {"text": "Bad.", "label": -1}, Labelled("Bad.", ("-1",))),
    ("labelled", {"text": "Good.", "label": True}, Labelled("Good.", ("true",))),
    (
        "labelled",
        {"text": "Card?", "label": " card_arrival", "n": 1},
        Labelled("Card?", ("card_arrival",), False, {"n": 1}),
    ),
    ("labelled", {"text": "Both.", "label": ["b", 1.0, "b"]}, Labelled("Both.", ("b", "1"), True)),
    ("labelled", {"text": "None.", "label": []}, Labelled("None.", (), True)),
    ("images", {"image": DOT, "label": 3, "n": 1}, Labelled(DOT, ("3",), False, {"n": 1})),
    ("images", {"image": str(DOT), "label": ["a", "b"]}, Labelled(DOT, ("a", "b"), True)),
    (
        "squad",
        {"context": SKY, "question": "Colour?", "answers": spans("blue", 11), "id": "7"},
        Spanned(SKY, "Colour?", ((11, 15),), {"id": "7"}),
    ),
    (
        "squad",
        {"context": SKY, "question": "Size?", "answers": {"text": [], "answer_start": []}},
        Spanned(SKY, "Size?", ()),
    ),
    ("text_to_text", {"source": "Himmel", "target": "sky", "n": 1}, Demonstration("Himmel", "sky", {"n": 1})),
    ("text_to_text", {"document": SKY, "summary": "Blue."}, Demonstration(SKY, "Blue.")),
    ("text_to_text", {"input": SKY, "target": "Blue."}, Demonstration(SKY, "Blue.")),
    ("hh", {"chosen": HH.format("Blue."), "rejected": HH.format("Green.")}, Preference([Q], [A], [B])),
    ("hh", {"chosen": HH.format("Blue."), "rejected": HH.format("")}, Preference([Q], [A], [reply("")])),
    (
        "hh",
        {"chosen": HH.format("Blue."), "rejected": HH.format("It\n\nAssistant:  is.")},
        Preference([Q], [A], [reply("It\n\nis.")]),
    ),
    ("hh", {"chosen": "Human: Sky?\n\nAssistant: Blue.", "rejected": HH.format("Green.")}, Preference([Q], [A], [B])),
    ("alpaca", {"instruction": "Sky?", "output": "Blue."}, Demonstration([Q], [A])),
    (
        "alpaca",
        {"instruction": "Colour?", "input": "sky", "output": "Blue."},
        Demonstration([user("Colour?\n\nsky")], [A]),
    ),
    ("alpaca", {"instruction": "Sky?", "input": "", "output": "Blue.", "n": 1}, Demonstration([Q], [A], {"n": 1})),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "Sky?"},
                {"from": "gpt", "value": "Blue."},
                {"from": "human", "value": "x"},
            ]
        },
        Demonstration([Q], [A]),
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}],
            "system": "Be brief.",
        },
        Demonstration([SYSTEM, Q], [A], {"system": "Be brief."}),
    ),
    (
        "ultrafeedback",
        {"prompt": "Sky?", "chosen": [Q, A], "rejected": [Q, B], "score_chosen": 9.0},
        Preference([Q], [A], [B], {"score_chosen": 9.0}),
    ),
    ("ultrafeedback", {"prompt": "Sky?", "chosen": [A], "rejected": [B]}, Preference([Q], [A], [B])),
    (
        "ultrafeedback",
        {"prompt": "Sky?", "chosen": [SYSTEM, Q, A], "rejected": [SYSTEM, Q, B]},
        Preference([SYSTEM, Q], [A], [B]),
    ),
    ("llmbar", {"input": "Sky?", "output_1": "Blue.", "output_2": "Green.", "label": 1}, Preference([Q], [A], [B])),
    ("llmbar", {"input": "Sky?", "output_1": "Green.", "output_2": "Blue.", "label": "2"}, Preference([Q], [A], [B])),
    (
        "helpsteer3",
        {"context": [Q], "response1": "Blue.", "response2": "Green.", "overall_preference": -3, "domain": "stem"},
        Preference([Q], [A], [B], {"domain": "stem", "strength": 3}),
    ),
    (
        "helpsteer3",
        {"context": [SYSTEM, Q], "response1": "Green.", "response2": "Blue.", "overall_preference": 1},
        Preference([SYSTEM, Q], [A], [B], {"strength": 1}),
    ),
    (
        "gsm8k",
        {"question": "Sky?", "answer": "2*600=1200\n#### 1,200"},
        Demonstration([Q], [reply("2*600=1200\n#### 1,200")], {"answer": "1200"}),
    ),
    ("gsm8k", {"question": "Sky?", "answer": "Blue."}, Demonstration([Q], [A], {"answer": "Blue."})),
]


@pytest.mark.parametrize(("name", "row", "expected"), CASES)
def test_a_row_is_recognised_and_read(name, row, expected):
    layout = find(None, row, "f.jsonl:3")
    assert layout.name == name
    (record,) = layout.records(row, "f.jsonl:3")
    assert record.origin == "f.jsonl:3"
    fields = [field for field in record.__dataclass_fields__ if field != "origin"]
    assert type(record) is type(expected)
    assert {field: getattr(record, field) for field in fields} == {field: getattr(expected, field) for field in fields}
    assert find(name, {}, "f.jsonl:3") is layout


def test_every_format_has_a_case():
    assert {name for name, _, _ in CASES} == set(formats()) - {"restaurant8k"}, "it has a file of its own"


def test_a_format_is_asked_before_those_it_names():
    order = list(formats())
    for layout in formats().values():
        for other in layout.before:
            assert order.index(layout.name) < order.index(other)


def test_any_two_formats_that_match_one_row_have_an_order():
    """Else adding a file could change how an existing set is read."""
    for _, row, _ in CASES:
        matching = [layout for layout in formats().values() if layout.matches(row)]
        for later in matching[1:]:
            assert later.name in matching[0].before, (row, matching[0].name, later.name)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("preference", {"prompt": "p", "chosen": "c"}, "column 'rejected' is missing (found: prompt, chosen)"),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": 5},
            "column 'rejected' must be text or a list of messages, not 5",
        ),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": [A]},
            "column 'rejected' holds messages, but the prompt is text",
        ),
        (
            "preference",
            {"prompt": [Q], "chosen": "c", "rejected": [A]},
            "column 'chosen' holds text, but the prompt is messages",
        ),
        ("preference", {"chosen": [Q, A], "rejected": "x"}, "column 'rejected' holds text, but the prompt is messages"),
        ("prompt_completion", {"prompt": "p"}, "column 'completion' is missing (found: prompt)"),
        (
            "prompt_completion",
            {"prompt": {"a": 1}, "completion": "c"},
            "column 'prompt' must be text or a list of messages, not an object",
        ),
        ("prompt_only", {}, "column 'prompt' is missing (found: none)"),
        ("messages", {"messages": "hi"}, "column 'messages' must be a list of messages, not text ('hi')"),
        (
            "messages",
            {"messages": [Q, "hi"]},
            "column 'messages', message 2: expected an object with role and content, not text ('hi')",
        ),
        (
            "messages",
            {"messages": [{"content": "hi"}]},
            "column 'messages', message 1: 'role' is missing (found: content)",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": 3}]},
            "column 'messages', message 1: 'content' must be text, not 3",
        ),
        (
            "kto",
            {"prompt": "p", "completion": "c", "label": "good"},
            "column 'label' must be true or false, not text ('good')",
        ),
        ("labelled", {"text": "t", "label": 0.5}, f"{A_CLASS}, not 0.5"),
        ("labelled", {"text": "t", "label": ["a", None]}, f"{A_CLASS}, not a list"),
        ("labelled", {"text": "t", "label": {}}, f"{A_CLASS}, not an object"),
        (
            "llmbar",
            {"input": "i", "output_1": "a", "output_2": "b", "label": 3},
            "column 'label' must be 1 or 2, not 3",
        ),
        (
            "helpsteer3",
            {"context": [Q], "response1": "a", "response2": "b", "overall_preference": "first"},
            "column 'overall_preference' must be a whole number, not text ('first')",
        ),
        ("alpaca", {"instruction": "i", "output": ["a"]}, "column 'output' must be text, not a list"),
        ("hh", {"chosen": "c", "rejected": [A]}, "column 'rejected' must be text, not a list"),
        ("sharegpt", {"conversations": "x"}, "column 'conversations' must be a list of turns, not text ('x')"),
        (
            "sharegpt",
            {"conversations": [{"from": "human"}]},
            "column 'conversations', turn 1: column 'value' is missing (found: from)",
        ),
        (
            "ultrafeedback",
            {"prompt": "p", "chosen": [Q, A], "rejected": "x"},
            "column 'rejected' must be a list of messages, not text ('x')",
        ),
        ("gsm8k", {"question": "q"}, "column 'answer' is missing (found: question)"),
        (
            "text_to_text",
            {"source": "s", "input": "i"},
            "document and summary, or input and target (found: source, input)",
        ),
        ("text_to_text", {"source": "s", "target": 1}, "column 'target' must be text, not 1"),
        ("text", {"text": 1}, "column 'text' must be text, not 1"),
    ],
)
def test_a_wrong_row_is_an_error_that_names_place_and_column(name, row, message):
    with pytest.raises(UserError) as caught:
        find(name, row, "").parse(row, "f.jsonl:3")
    text = str(caught.value)
    assert text.startswith("f.jsonl:3: ")
    assert text.endswith(message)


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("hh", {"chosen": HH.format("a"), "rejected": "\n\nHuman: Sea?\n\nAssistant: b"}, "prompts differ"),
        ("hh", {"chosen": HH.format("a"), "rejected": HH.format("b\n\nHuman: more")}, "ends without a reply"),
        ("hh", {"chosen": HH.format("a"), "rejected": "just text"}, "not a Human/Assistant transcript"),
        ("hh", {"chosen": HH.format("a"), "rejected": ""}, "empty side"),
        ("hh", {"chosen": HH.format("a"), "rejected": None}, "empty side"),
        ("labelled", {"text": "t", "label": None}, "no label"),
        ("kto", {"prompt": "p", "completion": "c", "label": None}, "no label"),
        ("labelled", {"text": "t", "label": ""}, "no label"),
        ("messages", {"messages": [A, Q]}, "starts with the assistant"),
        ("messages", {"messages": [Q, {**reply(""), "tool_calls": [1]}]}, "calls a tool"),
        ("preference", {"chosen": [Q, A, Q, A], "rejected": [Q, B, Q, A]}, "a side is not one assistant reply"),
        ("preference", {"chosen": "same", "rejected": "same"}, "identical"),
        ("llmbar", {"input": "i", "output_1": "a", "output_2": "b", "label": 0}, "tie"),
        ("llmbar", {"input": "i", "output_1": "a", "output_2": "b", "label": "Tie"}, "tie"),
        ("llmbar", {"input": "i", "output_1": "a", "output_2": "b", "label": None}, "tie"),
        ("helpsteer3", {"context": [Q], "response1": "a", "response2": "b", "overall_preference": 0}, "tie"),
        ("helpsteer3", {"context": [Q], "response1": "a", "response2": "b", "overall_preference": None}, "no label"),
        ("preference", {"prompt": [Q], "chosen": [Q], "rejected": [A]}, None),
        ("sharegpt", {"conversations": [{"from": "tool", "value": "x"}]}, "unknown speaker 'tool'"),
    ],
)
def test_a_row_nothing_can_be_learned_from_is_counted(name, row, reason):
    if reason is None:  # a side that only repeats the prompt is empty, which the checks count
        assert find(name, row, "").parse(row, "").chosen == []
        return
    with pytest.raises(Unusable) as caught:
        find(name, row, "").parse(row, "f.jsonl:3")
    assert caught.value.reason == reason


def test_unknown_formats_and_columns():
    with pytest.raises(UserError, match=r"^f:1: unknown format 'alpacca'; did you mean 'alpaca'[?]"):
        find("alpacca", {}, "f:1")
    with pytest.raises(UserError, match="unknown format 'zzz'; known: alpaca, gsm8k"):
        find("zzz", {}, "f:1")
    with pytest.raises(
        UserError, match=r"^f:1: no known format has these columns: a, b; .*alpaca .instruction, output"
    ):
        find(None, {"a": 1, "b": 2}, "f:1")
    with pytest.raises(UserError, match=r"has these columns: prompt <bytes>, n; "):
        find(None, {"prompt": Opaque("bytes"), "n": 1}, "f:1")


def test_implicit_prompts_are_taken_out_as_trl_does():
    from trl import extract_prompt

    rng = random.Random(0)
    words = ["the", "sky", "is", "blue", "green"]
    for _ in range(300):
        start = [rng.choice(words) for _ in range(rng.randrange(1, 4))]
        chosen, rejected = (" ".join([*start, end, *rng.choices(words, k=2)]) for end in ("yes", "no"))
        record = find("preference", {}, "").parse({"chosen": chosen, "rejected": rejected}, "")
        expected = extract_prompt({"chosen": chosen, "rejected": rejected})
        assert {key: getattr(record, key) for key in expected} == expected
        turns = [user(word) if index % 2 == 0 else reply(word) for index, word in enumerate([*start, *start[1:]])]
        row = {"chosen": [*turns, A], "rejected": [*turns, B]}
        record = find("preference", {}, "").parse(row, "")
        assert {key: getattr(record, key) for key in expected} == extract_prompt(row)
