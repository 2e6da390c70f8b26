import pytest

from rlhf.errors import UserError
from rlhf.rewards.regex import regex

REPLIES = ["Yes, on Monday.", "yes", "No", [{"role": "assistant", "content": "Yes"}]]


def test_found_anywhere_or_all_of_it():
    assert regex(["q"] * 4, REPLIES, pattern="Yes") == [1.0, 0.0, 0.0, 1.0]
    assert regex(["q"] * 4, REPLIES, pattern="Yes", full=True, topic=["a"] * 4) == [0.0, 0.0, 0.0, 1.0]
    assert regex(["q"] * 4, REPLIES, pattern="(?i)monday|^yes$") == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("pattern", ["(", 5])
def test_a_broken_pattern_is_told(pattern):
    with pytest.raises(UserError, match="is no regular expression"):
        regex([], [], pattern=pattern)
