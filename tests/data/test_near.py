"""Near-duplicates, by texts whose shingles can be counted."""

import random

import numpy as np
import pytest

from rlhf.data.index import HELD_OUT, ROW, TRAINED, Index
from rlhf.data.near import BAND_SIZE, BANDS, THRESHOLD, band_keys, jaccard, shingles

WORDS = "one two three four five six seven eight nine ten"


def words(count, seed=0):
    rng = random.Random(seed)
    return [f"w{rng.randrange(10**6)}" for _ in range(count)]


def test_shingles_are_runs_of_three_words_each_once():
    assert len(shingles(WORDS)) == 8
    assert len(shingles(f"{WORDS} {WORDS}")) == 8 + 2  # and the two across the seam
    hashes = shingles(WORDS)
    assert hashes.dtype == np.uint32
    assert list(hashes) == sorted(set(hashes))


def test_case_punctuation_and_white_space_do_not_count():
    assert np.array_equal(shingles(WORDS), shingles(WORDS.upper().replace(" ", ",\n") + "!"))


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("?!", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("seven words are not eight words yet", 28)],
)
def test_short_texts_are_runs_of_four_characters(text, count):
    assert len(shingles(text)) == count


def test_a_text_without_spaces_is_runs_of_characters():
    text = "".join(chr(0x4E00 + index) for index in range(200)) + "".join(
        "，" + chr(0x5E00 + index) for index in range(9)
    )
    assert len(shingles(text)) == 218 - 3  # a space stands for each comma


def test_jaccard():
    first, other = np.array([1, 2, 3], np.uint32), np.array([2, 3, 4, 5], np.uint32)
    assert jaccard(first, other) == jaccard(other, first) == 2 / 5
    assert jaccard(first, first) == 1
    assert jaccard(first, first[:0]) == jaccard(first[:0], first[:0]) == 0


def test_like_texts_share_a_band_and_others_do_not():
    """As often as the docstring says, within what 200 trials tell: 0.99 at 0.8, 0.03 at 0.3."""
    assert len(band_keys(shingles(WORDS))) == BANDS
    assert band_keys(shingles(WORDS)) == band_keys(shingles(WORDS))
    rng = np.random.default_rng(0)
    for similarity, low, high in ((0.8, 0.96, 1.0), (0.5, 0.2, 0.45), (0.3, 0.0, 0.08)):
        shared = 0
        for _ in range(200):
            pool = rng.choice(1 << 32, 2000, replace=False).astype(np.uint32)
            common = round(1000 * similarity)
            alone = (1000 - common) // 2
            first, other = (
                pool[: common + alone],
                np.concatenate([pool[:common], pool[common + alone : common + 2 * alone]]),
            )
            assert jaccard(first, other) == pytest.approx(similarity)
            shared += bool(set(band_keys(first)) & set(band_keys(other)))
        assert low <= shared / 200 <= high
        assert shared / 200 == pytest.approx(1 - (1 - similarity**BAND_SIZE) ** BANDS, abs=0.1)


@pytest.fixture
def index(tmp_path):
    with Index(tmp_path / "index.partial") as made:
        yield made
    assert not (tmp_path / "index.partial").exists()


def remember(index, texts):
    for number, (text, kind) in enumerate(texts):
        index.text(index.row(f"r{number}"), kind, shingles(text))


def changed(text_words, *places):
    return " ".join("changed" if index in places else word for index, word in enumerate(text_words))


def test_near_duplicates_are_those_of_an_earlier_row_by_the_exact_similarity(index):
    base = words(100)
    same = 98  # shingles of 100 words; a changed word changes three
    assert (same - 3) / (same + 3) > THRESHOLD > (same - 12) / (same + 12)
    texts = [
        " ".join(base),
        changed(base, 50),
        " ".join(words(100, 1)),
        changed(base, 10, 30, 60, 70),
        changed(base, 3),
    ]
    remember(index, [(text, ROW) for text in texts])
    assert list(index.near_duplicates()) == [("r1", "r0"), ("r4", "r0")]


def test_leaks_are_found_whichever_side_was_read_first(index):
    base, other = words(60), words(60, 1)
    remember(index, [
        (" ".join(base), HELD_OUT), (changed(base, 5), TRAINED), (changed(base, 9), HELD_OUT),
        (" ".join(other), TRAINED), (changed(other, 7), HELD_OUT), (" ".join(words(60, 2)), HELD_OUT),
        (changed(words(60, 3), 1), HELD_OUT), (changed(words(60, 3), 2), HELD_OUT),
    ])  # fmt: skip
    assert sorted(index.leaks()) == [("r0", "r1"), ("r2", "r1"), ("r4", "r3")]
    assert list(index.near_duplicates()) == []  # none of these is of that kind


def test_many_alike_are_compared_with_the_first_alone(index, monkeypatch):
    base = words(60)
    remember(index, [(changed(base, number % 60), ROW) for number in range(300)])
    from rlhf.data import near

    calls = []
    monkeypatch.setattr(near, "jaccard", lambda first, other: calls.append(1) or jaccard(first, other))
    assert len(list(index.near_duplicates())) > 290
    assert len(calls) < 1000


def test_an_index_keeps_more_than_a_batch(index):
    texts = [" ".join(words(20, number % 1500)) for number in range(3000)]
    remember(index, [(text, ROW) for text in texts])
    assert len(list(index.near_duplicates())) == 1500
    assert index.add(b"key")
    assert not index.add(b"key")
    assert b"key" in index
    assert b"other" not in index


def test_an_index_without_a_place_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Index() as made:
        assert made.add(b"key")
    assert list(tmp_path.iterdir()) == []
