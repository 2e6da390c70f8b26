from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rlhf.data.records import Prompt
from rlhf.evaluation.perturb import case, drop_words, perturbed, typos

TEXT = "I would like to know why my card was declined twice at the shop yesterday, please."


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_typos_are_slips_of_neighbouring_letters():
    """One slip a text: a letter gone, one twice, or two exchanged; nothing else changes."""
    kinds = Counter()
    for seed in range(60):
        slipped = typos("abcdef", draw(seed), rate=0.01)
        kinds[len(slipped)] += 1
        if len(slipped) == 6:
            assert sorted(slipped) == sorted("abcdef")
            assert sum(a != b for a, b in zip(slipped, "abcdef", strict=True)) in (0, 2)  # the last letter has no next
        elif len(slipped) == 7:
            assert "".join(dict.fromkeys(slipped)) == "abcdef"
        else:
            assert set(slipped) < set("abcdef")
    assert set(kinds) == {5, 6, 7}


def test_the_share_of_typos_is_the_rate_and_only_letters_slip():
    text = "0123456789 " * 20 + "abcdefghij" * 40
    slipped = typos(text, draw(), rate=0.1)
    assert slipped.startswith("0123456789 " * 20)
    assert typos("4 + 4", draw()) == "4 + 4"
    assert typos("", draw()) == ""
    gone = sum(len(typos(text, draw(seed), rate=0.1)) - len(text) for seed in range(40)) / 40
    assert abs(gone) < 6, "as many letters are doubled as are left out"


def test_case_changes_nothing_else():
    seen = {case(TEXT, draw(seed)) for seed in range(20)}
    assert seen == {TEXT.upper(), TEXT.lower(), TEXT.swapcase()}
    assert case("ABC", draw()) == "abc"
    assert case("12", draw()) == "12"


def test_dropped_words():
    words = TEXT.split()
    left = drop_words(TEXT, draw(), rate=0.2).split()
    assert len(left) == len(words) - round(0.2 * len(words))
    rest = iter(words)
    assert all(word in rest for word in left), "in their order"
    assert drop_words("one", draw()) == "one"
    assert len(drop_words("one two", draw(), rate=1.0).split()) == 1


@pytest.mark.parametrize("name", ["typos", "case", "drop_words"])
def test_a_perturbed_input_follows_from_the_input_alone(name):
    once, again = perturbed(Prompt(TEXT, {"label": "a"}), name), perturbed(Prompt(TEXT, {"label": "b"}, "file:1"), name)
    assert once.prompt == again.prompt != TEXT
    assert (once.extra, again.extra, again.origin) == ({"label": "a"}, {"label": "b"}, "file:1")
    changed = {perturbed(Prompt(f"{TEXT} {n}"), name).prompt[:40] for n in range(8)}
    assert len(changed) > 1, "not every input in the same way"


@pytest.mark.parametrize("name", ["typos", "case", "drop_words"])
def test_of_a_question_about_a_text_the_text_stays(name):
    context, question = "Anna met Ben in Rome.", "Where exactly did Anna meet Ben?"
    columns = {"question": question, "context": context, "answers": {"text": ["Rome"], "answer_start": [16]}}
    changed = perturbed(Prompt(f"{question}\n\n{context}", columns), name)
    assert changed.prompt == f"{changed.extra['question']}\n\n{context}"
    assert changed.extra["question"] != question
    assert (changed.extra["context"], changed.extra["answers"]) == (context, columns["answers"])
    assert columns["question"] == question


def test_of_messages_the_users_last_one_changes():
    turns = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Where is my order"},
    ]  # fmt: skip
    changed = perturbed(Prompt(turns), "drop_words").prompt
    assert [turn["role"] for turn in changed] == [turn["role"] for turn in turns]
    assert changed[:3] == turns[:3]
    assert len(changed[3]["content"].split()) == 3
    assert turns[3]["content"] == "Where is my order"
    assert perturbed(Prompt([{"role": "system", "content": "Be brief."}]), "case") is None
