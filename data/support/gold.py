"""True quality of a support reply, by rules that a person can check by hand.

The score is the mean of seven parts, each 0 or 1:

1. greets:     the reply opens with a greeting and the customer's own name.
2. product:    it names the product that the customer writes about, and no other product of the shop.
3. order:      it gives the order number, and no other number of five digits.
4. apology:    it apologises if, and only if, the customer complains.
5. next step:  it says who does what, and when ("I will send a new one tomorrow.").
6. no blame:   it blames nobody: not the customer, not a colleague, not the carrier.
7. stops:      it ends with a finished sentence, wanders off nowhere, repeats no sentence, and is at most 80 words long.

Parts 4 (where no apology is due), 6 and 7 are about what a reply leaves out. Any two words would earn them, so they
only count in a reply that takes up the case: one that has at least two of the parts 1, 2, 3 and 5.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

PRODUCTS = (
    "kettle",
    "desk lamp",
    "backpack",
    "toaster",
    "headset",
    "keyboard",
    "tent",
    "blender",
    "bicycle pump",
    "wall clock",
    "coffee grinder",
    "office chair",
    "rain jacket",
    "camera bag",
    "phone case",
    "water bottle",
    "rice cooker",
    "hair dryer",
    "yoga mat",
    "suitcase",
    "radio",
    "heater",
    "printer",
    "mirror",
)
PARTS = ("greets", "product", "order", "apology", "next_step", "no_blame", "stops")
MAX_WORDS = 80

_ORDER = re.compile(r"(?<!\d)\d{5}(?!\d)")
_LONG_NUMBER = re.compile(r"\d{4,}")
_APOLOGY = re.compile(r"\b(sorry|apolog\w+|regret)\b", re.IGNORECASE)
_ACTS = re.compile(r"\b(I|we) (will|have)\b|\byou will (get|receive)\b|\bplease \w+", re.IGNORECASE)
_WHEN = re.compile(
    r"\b(today|tonight|tomorrow|this (morning|afternoon|evening|week)"
    r"|(on|by|before) (mon|tues|wednes|thurs|fri|satur|sun)day"
    r"|within (an hour|\w+ (hours|days))|in the next (hour|\w+ hours))\b",
    re.IGNORECASE,
)
_BLAME = re.compile(
    r"\b(fault|to blame|careless\w*|you should have|you must have|you did not even|messed up|never (listen|read)s?)\b",
    re.IGNORECASE,
)
_WANDERS = re.compile(r"\b(by the way|that reminds me|speaking of|funny story|on another note)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def score(prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
    """Rate replies by their true quality (a reward function in TRL's convention).

    Args:
        prompts: B prompts; not read, since the columns say what a reply has to take up.
        completions: B replies, each a string or a list of messages whose last one is the reply.
        **columns: `name`, `product`, `order` (strings) and `complaint` (bool), each of length B; others are ignored.

    Returns:
        B scores in [0, 1], the mean of the seven parts.

    Raises:
        KeyError: a column is missing.
    """
    slots = zip(columns["name"], columns["product"], columns["order"], columns["complaint"], strict=True)
    return [
        sum(parts(_text(completion), name, product, str(order), bool(complaint)).values()) / len(PARTS)
        for completion, (name, product, order, complaint) in zip(completions, slots, strict=True)
    ]


def parts(reply: str, name: str, product: str, order: str, complaint: bool) -> dict[str, bool]:
    """Return which of the seven parts (keys: `PARTS`) the reply has."""
    found = {
        "greets": _greets(reply, name),
        "product": _mentions(reply, product) and not any(_mentions(reply, p) for p in PRODUCTS if p != product),
        "order": set(_LONG_NUMBER.findall(reply)) == {order} and bool(_ORDER.search(reply)),
        "next_step": any(_ACTS.search(s) and _WHEN.search(s) for s in _sentences(reply)),
    }
    on_the_case = sum(found.values()) >= 2
    apologises = bool(_APOLOGY.search(reply))
    found["apology"] = apologises if complaint else (on_the_case and not apologises)
    found["no_blame"] = on_the_case and not _BLAME.search(reply)
    found["stops"] = on_the_case and _stops(reply)
    return {part: found[part] for part in PARTS}


def _text(completion: str | Sequence[Mapping[str, str]]) -> str:
    """Return the reply as plain text."""
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return text.strip()


def _sentences(reply: str) -> list[str]:
    return [s.strip() for s in _SENTENCE_END.split(reply) if s.strip()]


def _mentions(reply: str, words: str) -> bool:
    return re.search(rf"\b{re.escape(words)}\b", reply, re.IGNORECASE) is not None


def _greets(reply: str, name: str) -> bool:
    greeting = rf"(hello|hi|dear|good (morning|day|afternoon|evening)),? {re.escape(name)}\b"
    return re.match(greeting, reply, re.IGNORECASE) is not None


def _stops(reply: str) -> bool:
    sentences = [s.lower() for s in _sentences(reply)]
    return (
        reply.endswith((".", "!", "?"))
        and len(reply.split()) <= MAX_WORDS
        and len(set(sentences)) == len(sentences)
        and not _WANDERS.search(reply)
    )
