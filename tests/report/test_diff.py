from __future__ import annotations

import re

import pytest

from rlhf.report.diff import Piece, word_diff


@pytest.mark.parametrize(
    ("before", "after", "pieces"),
    [
        ("a b c d", "a b c d", [("same", "a b c d")]),
        ("a b c d", "a b x d", [("same", "a b "), ("del", "c "), ("ins", "x "), ("same", "d")]),
        ("a b c", "a b c d", [("same", "a b c "), ("ins", "d")]),
        ("a b c d", "b c d", [("del", "a "), ("same", "b c d")]),
        ("order 12. Bye", "order 12; Bye", [("same", "order 12"), ("del", ". "), ("ins", "; "), ("same", "Bye")]),
        ("one two, three four five six", "one deux, trois four five six",
         [("same", "one "), ("del", "two, three "), ("ins", "deux, trois "), ("same", "four five six")]),
        ("a  b", "a\nb", [("same", "a\nb")]),
        ("", "", []),
    ],
)  # fmt: skip
def test_hand_examples(before, after, pieces):
    assert word_diff(before, after) == [Piece(*piece) for piece in pieces]


def test_both_texts_can_be_read_from_the_pieces():
    before = "Hello Mei, I am sorry. We look at order 7, and write to you soon; please wait."
    after = "Hello Mei,\nI am very sorry! We looked at order 7, and sent a new one; please wait."
    pieces = word_diff(before, after)
    assert pieces is not None
    assert "".join(piece.text for piece in pieces if piece.kind != "del") == after
    words = [re.findall(r"\w+|[^\w\s]", text) for text in
             ("".join(piece.text for piece in pieces if piece.kind != "ins"), before)]  # fmt: skip
    assert words[0] == words[1]
    kinds = [piece.kind for piece in pieces]
    assert all(kinds[i : i + 2] != ["ins", "del"] for i in range(len(kinds)))


def test_texts_that_are_not_alike_or_very_long_are_not_marked():
    assert word_diff("alpha beta gamma", "one two three") is None
    assert word_diff("", "one two three") is None
    assert word_diff("w " * 3000, "w " * 3000) is None
