from __future__ import annotations

import io
from collections import Counter
from difflib import SequenceMatcher

import numpy as np
import pytest
from PIL import Image as Pillow

from rlhf.data.images import image_bytes
from rlhf.data.records import Image, Prompt
from rlhf.errors import UserError
from rlhf.evaluation.perturb import case, drop_words, noise, perturbed, typos

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
    letters = "".join(
        chr(0x4E00 + number) for number in range(400)
    )  # all different, so that a slip is seen where it is
    changes = SequenceMatcher(None, letters, typos(letters, draw(), rate=0.1), autojunk=False).get_opcodes()
    assert 35 <= sum(kind != "equal" for kind, *_ in changes) <= 60, "40 slips, of which some are two changes"
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


def pixels(image: str) -> np.ndarray:
    return np.asarray(Pillow.open(io.BytesIO(image_bytes(image))), dtype=float)


@pytest.mark.parametrize(("mode", "shape"), [("L", (40, 50)), ("RGB", (40, 50, 3))])
def test_noise_has_the_deviation_it_is_given_and_no_direction(tmp_path, mode, shape):
    path = tmp_path / "grey.png"
    Pillow.new(mode, (50, 40), 128 if mode == "L" else (128, 128, 128)).save(path)
    difference = pixels(noise(str(path), draw(), deviation=0.05)) - 128
    assert difference.shape == shape
    assert difference.std() == pytest.approx(0.05 * 255, rel=0.05)
    assert abs(difference.mean()) < 1


def test_a_noisy_image_is_an_image_and_follows_from_the_first(tmp_path):
    path = tmp_path / "black.png"
    Pillow.new("L", (8, 8)).save(path)
    once, again = (perturbed(Prompt(Image(path), {"label": "3"}), "noise") for _ in range(2))
    assert isinstance(once.prompt, Image)
    assert once == again
    assert once.extra == {"label": "3"}
    assert pixels(once.prompt).min() == 0 < pixels(once.prompt).max()
    assert perturbed(once, "noise").prompt != once.prompt


def test_a_perturbation_of_texts_is_none_of_images(tmp_path):
    assert perturbed(Prompt(TEXT), "noise") is None
    assert perturbed(Prompt(Image("digit.png")), "typos") is None


def test_what_is_no_image(tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(UserError, match=r"notes.png: not an image"):
        noise(str(tmp_path / "notes.png"), draw())
    with pytest.raises(UserError, match=r"gone.png"):
        noise(str(tmp_path / "gone.png"), draw())
