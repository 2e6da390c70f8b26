"""Rows with few words, whose classes and rewards are known."""

import pytest

from rlhf.envs import Rows

LABELS = ("card", "loan")


def right(prompts, completions, label, **columns):
    return [1.0 if completion == wanted else -1.0 for completion, wanted in zip(completions, label, strict=True)]


def counts(text):
    """How often each word of a small vocabulary stands in a text."""
    return [text.split().count(word) for word in ("where", "is", "my", "card", "loan")]


QUESTIONS = [
    {"prompt": "where is my card", "label": "card"},
    {"prompt": "where is my loan", "label": "loan"},
    {"prompt": "my card is lost", "label": "card"},
]


@pytest.fixture
def rows():
    return Rows(QUESTIONS, counts)


@pytest.fixture
def stages():
    """Two words at first, then three, then all."""
    return Rows(QUESTIONS, counts, shown=(2, 3, None))
