import pytest

from rlhf.errors import UserError
from rlhf.rewards.length import length

REPLIES = ["", "one", "one  two\nthree", [{"role": "assistant", "content": "one two three four five six"}]]


def test_length_in_words_and_characters():
    assert length(["q"] * 4, REPLIES) == [0.0, 1.0, 3.0, 6.0]
    assert length(["q"] * 2, REPLIES[:2], unit="characters") == [0.0, 3.0]


def test_a_target_is_missed_on_both_sides_alike():
    assert length(["q"] * 4, REPLIES, target=3) == pytest.approx([-1.0, -2 / 3, 0.0, -1.0])
    assert length(["q"], ["abcd"], target=5, unit="characters", topic=["x"]) == pytest.approx([-0.2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "word"}, "unknown unit 'word'; did you mean 'words'"),
        ({"target": 0}, "target must be a number above 0, not 0"),
        ({"target": "ten"}, "target must be a number above 0, not 'ten'"),
    ],
)
def test_what_is_wrong_is_said(arguments, message):
    with pytest.raises(UserError, match=message):
        length([], [], **arguments)
