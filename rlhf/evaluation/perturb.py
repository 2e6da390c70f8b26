"""Inputs that mean the same and look worse: what `evaluate.perturb` lists. Pure functions of the input.

What is changed follows from the input alone, so that every policy, and every run, sees the same perturbed input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from rlhf.data.records import Prompt, Text

LETTERS = 0.05
"""Share of the letters that `typos` changes."""
WORDS = 0.15
"""Share of the words that `drop_words` leaves out."""


def perturbed(prompt: Prompt, name: str) -> Prompt | None:
    """A prompt as a perturbation leaves it; None where it does not apply.

    Of messages the last one of the user is changed. Of a question about a text (columns `question` and `context`, as a
    span policy reads them) only the question is: the answers are places of the context, which must not move.

    Args:
        prompt: The prompt with its columns, which stay as they are but for `question`.
        name: The perturbation.
    """
    change = _CHANGES[name]
    rng = np.random.default_rng(_seed(name, prompt.prompt))
    question, context = prompt.extra.get("question"), prompt.extra.get("context")
    if isinstance(prompt.prompt, str) and question and context and prompt.prompt.startswith(question):
        asked = change(question, rng)
        return replace(prompt, prompt=asked + prompt.prompt[len(question) :], extra={**prompt.extra, "question": asked})
    if isinstance(prompt.prompt, str):
        return replace(prompt, prompt=change(prompt.prompt, rng))
    users = [number for number, turn in enumerate(prompt.prompt) if turn["role"] == "user"]
    if not users:
        return None
    turns = [dict(turn) for turn in prompt.prompt]
    turns[users[-1]]["content"] = change(turns[users[-1]]["content"], rng)
    return replace(prompt, prompt=turns)


def typos(text: str, rng: np.random.Generator, rate: float = LETTERS) -> str:
    """Slips of the fingers: some letters change places with the next one, are left out, or are typed twice.

    Args:
        text: The text.
        rng: Which letters, and which of the three.
        rate: Share of the letters; of a text with two letters at least one is changed.
    """
    letters = [place for place, char in enumerate(text) if char.isalpha()]
    if len(letters) < 2:
        return text
    hit = rng.choice(letters, size=max(1, round(rate * len(letters))), replace=False)
    chars = list(text)
    for place in sorted(hit.tolist(), reverse=True):  # from the end, so that earlier places stay what they are
        kind = rng.integers(3)
        if kind == 0 and place + 1 < len(chars):
            chars[place : place + 2] = chars[place + 1], chars[place]
        elif kind == 1:
            del chars[place]
        else:
            chars.insert(place, chars[place])
    return "".join(chars)


def case(text: str, rng: np.random.Generator) -> str:
    """All letters as capitals, all small, or all the other way round: the first of these by chance that changes it."""
    ways = (text.upper(), text.lower(), text.swapcase())
    changed = [way for way in ways if way != text]
    return changed[rng.integers(len(changed))] if changed else text


def drop_words(text: str, rng: np.random.Generator, rate: float = WORDS) -> str:
    """A text without some of its words.

    Args:
        text: The text.
        rng: Which words.
        rate: Share of the words; at least one of two or more words is left out, and one always stays.
    """
    words = text.split()
    if len(words) < 2:
        return text
    count = min(len(words) - 1, max(1, round(rate * len(words))))
    dropped = set(rng.choice(len(words), size=count, replace=False).tolist())
    return " ".join(word for place, word in enumerate(words) if place not in dropped)


def _seed(name: str, prompt: Text) -> int:
    """From the input, whatever the run."""
    return int.from_bytes(hashlib.sha256(f"{name}\0{prompt}".encode(errors="surrogatepass")).digest()[:8], "big")


_CHANGES: Mapping[str, Callable[[str, np.random.Generator], str]] = {
    "typos": typos,
    "case": case,
    "drop_words": drop_words,
}
