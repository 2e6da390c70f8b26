"""What a file holds is counted, not guessed."""

import pytest

from rlhf.data.records import Demonstration, Preference
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.init.columns import propose
from rlhf.init.look import MOST_ROWS, Lengths, look, measure, read_sample
from rlhf.init.reading import Reading
from rlhf.init.settings import described


def looked(name, folder, **fields):
    reading = propose(read_sample(name, folder), **fields)
    return look(name, folder, reading), reading


def test_rows_prompts_duplicates_and_what_cannot_be_used(put, tmp_path):
    rows = [
        {"question": "Is the train late?", "good": "It is late.", "bad": "No."},
        {"question": "Is the train late?", "good": "It is on time.", "bad": "No idea at all, sorry."},
        {"question": "Is the train late?", "good": " It is late.", "bad": "No. "},
        {"question": "And the bus?", "good": "The same.", "bad": "The same."},
        {"question": "And the tram?", "good": "", "bad": "No."},
    ]
    facts, _ = looked(put("pairs.jsonl", rows), tmp_path)
    assert (facts.rows, facts.used, facts.prompts, facts.duplicates, facts.longer) == (5, 2, 1, 1, 1)
    assert facts.dropped == {"identical": 1, "empty side": 1}
    sentence = "2 usable rows, 2 not usable (1 identical, 1 empty side), 1 duplicates, 2.0 rows a prompt"
    assert described(facts).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The train to the sea is on time, and it is full.", "English"),
        ("Der Zug an die See ist nicht voll und das ist gut.", "German"),
        ("Le train pour la mer est dans une gare que les gens aiment.", "French"),
        ("列車は海へ行きます", "Han script"),
        ("поезд идёт к морю", "Cyrillic script"),
    ],
)
def test_the_language_of_the_replies(put, tmp_path, text, language):
    facts, _ = looked(put("rows.jsonl", [{"prompt": f"{n}?", "completion": text} for n in range(3)]), tmp_path)
    assert facts.language == language


def test_answers_that_a_function_can_check(put, tmp_path):
    rows = [{"question": f"{n} + 1?", "answer": f"so\n#### {n + 1:,}"} for n in (1, 1000)]
    rows.append({"question": "Who?", "answer": "Ada, of course"})
    facts, _ = looked(put("maths.jsonl", rows), tmp_path)
    assert (facts.checkable, facts.used) == (2, 3)


def test_judgements_and_classes_are_counted(put, tmp_path):
    rows = [{"prompt": f"{n}?", "completion": "Yes.", "label": n > 0} for n in range(3)]
    facts, _ = looked(put("judged.jsonl", rows), tmp_path)
    assert facts.classes == {"good": 2, "bad": 1}
    facts, _ = looked(put("classes.jsonl", [{"text": f"{n}?", "label": "ab"[n % 2]} for n in range(5)]), tmp_path)
    assert facts.classes == {"a": 3, "b": 2}
    assert "2 classes, the rarest with 2 rows" in described(facts)


def test_a_malformed_row_behind_the_first_ones_is_named(put, tmp_path):
    rows = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(3)]
    name = put("pairs.jsonl", [*rows, {"prompt": "?", "chosen": 3, "rejected": "b"}])
    with pytest.raises(UserError, match=r"pairs.jsonl:4: column 'chosen' must be text"):
        looked(name, tmp_path)


def test_of_a_long_file_the_first_rows_are_looked_at(put, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.init.look.MOST_ROWS", 5)
    name = put("rows.jsonl", [{"prompt": f"{n}?", "completion": "Yes."} for n in range(9)])
    facts = look(name, tmp_path, Reading("demonstrations", "prompt_completion"))
    assert (facts.used, facts.more) == (5, True)
    assert described(facts).startswith("more than 5 usable rows")
    assert MOST_ROWS > 5


def test_lengths_in_tokens_are_those_of_training(tiny_tokenizer):
    codec = Codec(tiny_tokenizer)
    prompt = [{"role": "user", "content": "Hello Ada"}]
    sides = [[{"role": "assistant", "content": text}] for text in ("Yes.", "I am sorry about your lamp.")]
    lengths = measure([Preference(prompt, *sides), Demonstration("Hello", " Ada")], codec)
    ids = codec.scored_pair(Preference(prompt, *sides)).columns
    plain = codec.demonstration(Demonstration("Hello", " Ada")).columns
    assert lengths.whole == (max(map(len, ids.values())), len(plain["input_ids"]))
    assert lengths.replies[1] == sum(label != -100 for label in plain["labels"])
    assert lengths.exact


def test_the_lengths_of_several_files_are_joined():
    files = [Lengths((5, 7), (2, 3)), Lengths((1,), (1,), exact=False)]
    assert Lengths.joined(files) == Lengths((5, 7, 1), (2, 3, 1), exact=False)
    assert Lengths.joined([]) == Lengths()


def test_without_a_tokenizer_lengths_follow_from_the_characters():
    lengths = measure([Demonstration("x" * 70, "y" * 35)], None)
    assert (lengths.whole, lengths.replies, lengths.exact) == ((38,), (11,), False)


def test_the_length_that_covers_a_share():
    lengths = Lengths(tuple(range(1, 101)), (5,), True)
    assert [lengths.covering(share) for share in (0.5, 0.99, 1.0)] == [51, 100, 100]
    assert sum(length <= lengths.covering(0.9) for length in lengths.whole) >= 90
    assert lengths.covering(0.99, replies=True) == 5
    assert Lengths((), (), True).covering(0.99) == 0
