from __future__ import annotations

import math

import pytest

from rlhf.evaluation.diversity import distinct_n, repetition


def test_distinct_by_hand():
    assert distinct_n(["a b a b"], 1) == 0.5  # a, b of four words
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)  # ab, ba of ab, ba, ab
    assert distinct_n(["a b", "a c"], 1) == 0.75  # a, b, c of four
    assert distinct_n(["a b", "c d"], 2) == 1.0  # no bigram over the border: ab and cd, not bc
    assert distinct_n(["a b", "a b"], 2) == 0.5


def test_words_and_marks_are_apart():
    assert distinct_n(["Yes. yes."], 1) == 0.75  # Yes, yes, the mark twice
    assert distinct_n(["naïve naïve"], 1) == 0.5


def test_without_an_n_gram_there_is_nothing_to_say():
    assert math.isnan(distinct_n([], 1))
    assert math.isnan(distinct_n(["", "  "], 1))
    assert math.isnan(distinct_n(["one", "two"], 2))
    assert distinct_n(["one", "two words"], 2) == 1.0
    with pytest.raises(ValueError, match="n-grams"):
        distinct_n(["a"], 0)


def test_the_same_reply_again_halves_it():
    text = "each of these words stands here once"
    assert distinct_n([text], 2) == 1.0
    assert distinct_n([text, text], 2) == 0.5


def test_repetition_is_within_a_reply():
    assert repetition("a b c d e f g") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # abcd again, of five 4-grams
    assert repetition("no " * 100) == pytest.approx(96 / 97)
    assert math.isnan(repetition("too few words"))
