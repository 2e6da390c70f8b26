"""Inputs that mean the same and look worse: what `evaluate.perturb` lists. Pure functions of the input.

What is changed follows from the input alone, so that every policy, and every run, sees the same perturbed input.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from rlhf.config.project import Perturbation
from rlhf.data.images import image_bytes
from rlhf.data.records import Image, Prompt, Text
from rlhf.errors import UserError, not_installed

LETTERS = 0.05
"""Share of the letters that `typos` changes."""
WORDS = 0.15
"""Share of the words that `drop_words` leaves out."""
NOISE = 0.1
"""Standard deviation of what `noise` adds to a pixel, where black is 0 and white is 1."""

_LONGEST = 200  # characters of an image's name in a message: a data URI has thousands


class PerturbedPrompt(NamedTuple):
    """A prompt as a perturbation leaves it."""

    perturbation: Perturbation
    place: int
    """Where the prompt stands among all prompts."""
    prompt: Prompt


class _Kind(NamedTuple):
    change: Callable[[str, np.random.Generator], str]
    of_images: bool


def perturbed_prompts(prompts: Sequence[Prompt], names: Iterable[Perturbation]) -> list[PerturbedPrompt]:
    """Prompts as each perturbation leaves those that it applies to, perturbation by perturbation.

    Args:
        prompts: Those to perturb.
        names: As in `evaluate.perturb`; one that is named twice counts once.

    Raises:
        UserError: A perturbation applies to no prompt, or an image cannot be read.
    """
    changed = []
    for name in dict.fromkeys(names):
        members = [
            PerturbedPrompt(name, place, other)
            for place, prompt in enumerate(prompts)
            if (other := perturbed(prompt, name)) is not None
        ]
        if not members:
            what = "an image" if _KINDS[name].of_images else "a text"
            raise UserError(f"evaluate.perturb: {name} changes none of the prompts to evaluate on: none is {what}")
        changed += members
    return changed


def perturbed(prompt: Prompt, name: Perturbation) -> Prompt | None:
    """A prompt as a perturbation leaves it; None where it does not apply: `noise` to a text, the others to an image.

    Of messages the last one of the user is changed. Of a question about a text (columns `question` and `context`, as a
    span policy reads them) only the question is: the answers are places of the context, which must not move.

    Args:
        prompt: The prompt with its columns, which stay as they are but for `question`.
        name: The perturbation.
    """
    change, of_images = _KINDS[name]
    if isinstance(prompt.prompt, Image) != of_images:
        return None
    rng = np.random.default_rng(_seed(name, prompt.prompt))
    question, context = prompt.extra.get("question"), prompt.extra.get("context")
    if isinstance(prompt.prompt, str) and question and context and prompt.prompt.startswith(question):
        asked = change(question, rng)
        return replace(prompt, prompt=asked + prompt.prompt[len(question) :], extra={**prompt.extra, "question": asked})
    if isinstance(prompt.prompt, str):
        return replace(prompt, prompt=type(prompt.prompt)(change(prompt.prompt, rng)))
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


def noise(image: str, rng: np.random.Generator, deviation: float = NOISE) -> str:
    """An image with Gaussian noise on every pixel of every channel, as a data URI (PNG).

    Args:
        image: A path, or a data URI.
        rng: The noise.
        deviation: Its standard deviation, where black is 0 and white is 1; what leaves that range is cut.

    Raises:
        UserError: The image cannot be read, or Pillow is not installed.
    """
    try:
        from PIL import Image as Pillow
    except ImportError:
        raise not_installed("pillow", "images") from None
    try:
        with Pillow.open(io.BytesIO(image_bytes(image))) as picture:
            mode = "L" if picture.mode in ("1", "L") else "RGB"
            values = np.asarray(picture.convert(mode), dtype=np.float64) / 255
    except (OSError, SyntaxError, ValueError):
        shown = image if len(image) <= _LONGEST else image[:_LONGEST] + " …"
        raise UserError(f"{shown}: not an image in a format that Pillow reads") from None
    noisy = np.clip(values + rng.normal(0, deviation, values.shape), 0, 1)
    out = io.BytesIO()
    Pillow.fromarray((255 * noisy).round().astype(np.uint8), mode).save(out, format="PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _seed(name: str, prompt: Text) -> int:
    """From the input, whatever the run."""
    return int.from_bytes(hashlib.sha256(f"{name}\0{prompt}".encode(errors="surrogatepass")).digest()[:8], "big")


_KINDS: Mapping[Perturbation, _Kind] = {
    "typos": _Kind(typos, of_images=False),
    "case": _Kind(case, of_images=False),
    "drop_words": _Kind(drop_words, of_images=False),
    "noise": _Kind(noise, of_images=True),
}
