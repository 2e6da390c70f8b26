"""Which side of the held-out split a prompt is on, and how often a row of a mixture is used.

Both follow from hashes of the content, so they depend neither on the order of rows, nor on other rows, nor on the set
that a prompt is in: a prompt held out of one set is held out of all. Of a conversation only the opening counts (up to
the first user turn), so that its later turns, which other rows may have as prompts, stay on the same side.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Literal

from rlhf.config.project import ProjectConfig
from rlhf.data.images import image_bytes
from rlhf.data.records import (
    Demonstration,
    Feedback,
    Image,
    Labelled,
    Preference,
    Prompt,
    Record,
    Spanned,
    Text,
    as_conversation,
)
from rlhf.workflow import rows_from, stage_of

Side = Literal["train", "eval"]


def canonical(text: Text) -> str:
    """A form in which texts can be compared: roles and contents, without white space around them.

    Plain text counts as one user turn, so that a prompt is the same in a plain and in a conversational set. Of an image
    it is a digest of its bytes, wherever these are.
    """
    if isinstance(text, Image):
        return f"image {hashlib.blake2b(image_bytes(text), digest_size=16).hexdigest()}"
    messages = as_conversation(text)
    return json.dumps([[message["role"], message["content"].strip()] for message in messages])


def content_key(*texts: Text) -> bytes:
    """A 16-byte digest of texts, equal where their contents are. It also orders texts independently of their rows."""
    return hashlib.blake2b("\0".join(map(canonical, texts)).encode(), digest_size=16).digest()


def side(prompt: Text, holdout: float, seed: int) -> Side:
    """Whether a prompt is trained on (`train`) or held out (`eval`).

    Args:
        prompt: The prompt; of a conversation, only the part up to its first user turn counts.
        holdout: Share of prompts held out, in [0, 1]. What is held out at one share is held out at every larger one.
        seed: Another seed holds out other prompts.
    """
    return "eval" if _uniform("split", seed, canonical(_opening(prompt))) < holdout else "train"


def opening(record: Record) -> Text:
    """The opening of a record's first prompt: what decides its side."""
    return _opening(contexts(record)[0])


def half_of(prompt: Text, seed: int) -> int:
    """Which half of the prompts a prompt belongs to, 0 or 1; for a conversation its opening decides, as in `side`."""
    return int(_uniform("half", seed, canonical(_opening(prompt))) < 0.5)


def half_for(project: ProjectConfig, name: str) -> int | None:
    """The half of its set that a stage trains on, where another stage of the project has the other half to itself."""
    stage = stage_of(name)
    if stage.data is None or stage.online or rows_from(project, name) is not None:
        return None
    rows = project.data.supplier(stage.data)
    split = any(
        other.own_half and other.data is not None and project.data.supplier(other.data) == rows
        for other in map(stage_of, project.stages)
    )
    return int(stage.own_half) if split else None


def copies(key: bytes, weight: float, seed: int) -> int:
    """How often a training row is used: `weight` times on average; the row's hash decides about the fraction.

    Args:
        key: What identifies the row (`checks.row_key`).
        weight: Weight of its source.
        seed: Another seed keeps other rows.
    """
    whole = math.floor(weight)
    return whole + (_uniform("weight", seed, key.hex()) < weight - whole)


def contexts(record: Record) -> list[Text]:
    """The prompts of a record: its own, and the conversation so far before each later turn of the assistant.

    The first one decides the record's side of the split. Of a question about a text it is this text, so that all
    questions about it are on one side.
    """
    prompts: list[Text] = [own_prompt(record)]
    if isinstance(record, Spanned | Prompt) and record.context:
        return [record.context, *prompts]
    if isinstance(record, Demonstration) and isinstance(record.completion, list) and isinstance(record.prompt, list):
        later = [index for index, message in enumerate(record.completion) if message["role"] == "assistant"][1:]
        prompts.extend(record.prompt + record.completion[:index] for index in later)
    return prompts


def own_prompt(record: Record) -> Text:
    """The prompt of a record; for a text without a prompt the text itself, which then tells such rows apart."""
    if isinstance(record, Labelled):
        return record.text
    if isinstance(record, Demonstration) and not record.prompt:
        return record.completion
    return record.prompt


def completions(record: Record) -> list[Text]:
    """The completions of a record."""
    match record:
        case Demonstration() | Feedback():
            return [record.completion]
        case Preference():
            return [record.chosen, record.rejected]
        case _:
            return []


def _opening(prompt: Text) -> Text:
    if isinstance(prompt, str):
        return prompt
    first = next((index for index, message in enumerate(prompt) if message["role"] == "user"), len(prompt) - 1)
    return prompt[: first + 1]


def _uniform(purpose: str, seed: int, text: str) -> float:
    """A number in [0, 1) that these arguments determine."""
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{text}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
