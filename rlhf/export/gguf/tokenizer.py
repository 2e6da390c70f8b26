"""A tokenizer as GGUF's metadata, and back: byte-level BPE, whose text is split first as llama.cpp knows by a name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from rlhf.errors import UserError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Types of tokens, as GGUF numbers them."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,),
    "qwen2": (_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,),
}
"""llama.cpp's name of a way to split text -> regular expressions, each of which splits what those before it left."""
TRICKY = (
    "Hello  World, it's I'll WE'RE don't 'S 12 123 12345 1,000.50 $12.5 a1b22 x²½Ⅷ٣\n\n\n  new\r\n\tline \u00a0end   \n"
    " trailing  \n\nÄrger naïve e\u0301 Привет мир こんにちは 世界 ไทย 한국어 😀👩‍👩‍👧"
    ' (brackets)[x]{y}==>> !!! ... "q" #tag @me a_b-c/d'
    "   three  two one\t\ttabs ́ ـَ ‍ end "
)
"""A text that no two of the ways split alike."""
_MARKED = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


class Vocabulary(NamedTuple):
    """A tokenizer as a GGUF file has it."""

    split: str
    """A key of `SPLITS`."""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    """bos, eos, unk and pad -> id; those that there are."""
    adds: dict[str, bool]
    """bos and eos -> whether the tokenizer adds it to a text by itself."""
    template: str | None


def splits(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The name of the way in which a tokenizer splits text; None where it is none of `SPLITS`."""
    own = tokenizer.backend_tokenizer.pre_tokenizer  # type: ignore[attr-defined]
    if own is None:
        return None
    pieces = [piece for piece, _ in own.pre_tokenize_str(TRICKY)]
    fitting = (name for name in SPLITS if [piece for piece, _ in _splitter(name).pre_tokenize_str(TRICKY)] == pieces)
    return next(fitting, None)


def _splitter(name: str) -> pre_tokenizers.PreTokenizer:
    parts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS[name]]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def unfit(tokenizer: Any) -> str | None:
    """Why a tokenizer cannot be written into a GGUF file; None where it can."""
    if not getattr(tokenizer, "is_fast", False):
        return "its tokenizer is not one of the tokenizers library"
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, normalizer = state["model"], state["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback") or not _byte_level(state["decoder"]):
        return "its tokenizer is no byte-level BPE"
    if normalizer is not None and normalizer.get("type") != "NFC":
        return "its tokenizer changes text before it splits it, which a GGUF could not say"
    if splits(tokenizer) is None:
        return f"its tokenizer splits text in a way of its own; known are those of {', '.join(SPLITS)}"
    return None


def _byte_level(decoder: Mapping[str, Any] | None) -> bool:
    return decoder is not None and "ByteLevel" in json.dumps(decoder)


def vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """A tokenizer as GGUF has it.

    Args:
        tokenizer: One that is not `unfit`.
        size: Rows of the embeddings; ids beyond the tokenizer's get a name, and are never written.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {entry["id"]: entry for entry in state["added_tokens"]}
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    types = [_type(number, added, by_id) for number in range(size)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["model"]["merges"]]
    special = {
        kind: number
        for kind in ("bos", "eos", "unk", "pad")
        if (number := getattr(tokenizer, f"{kind}_token_id")) is not None
    }
    ids = tokenizer("a")["input_ids"]
    adds = {"bos": ids[:1] == [special.get("bos")], "eos": ids[-1:] == [special.get("eos")]}
    return Vocabulary(splits(tokenizer) or "", tokens, types, merges, special, adds, _template(tokenizer))


def _type(number: int, added: Mapping[int, Mapping[str, Any]], by_id: Mapping[int, str]) -> int:
    if number in added:
        return _CONTROL if added[number]["special"] else _USER_DEFINED
    return _NORMAL if number in by_id else _UNUSED


def _template(tokenizer: Any) -> str | None:
    """The chat template without the marks of what is trained on, which other engines may not know.

    An empty comment takes the place of each, which strips the same white space.
    """
    template = tokenizer.chat_template
    return _MARKED.sub(r"{#\1 \2#}", template) if isinstance(template, str) else None


def read_back(vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer that a file describes, by llama.cpp's rules."""
    names = {token: number for number, token in enumerate(vocabulary.tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    tokenizer = Tokenizer(models.BPE(vocab=names, merges=pairs))
    tokenizer.pre_tokenizer = _splitter(vocabulary.split)
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        tokens = [token for token, what in zip(vocabulary.tokens, vocabulary.types, strict=True) if what == kind]
        added = [AddedToken(token, normalized=False, special=special) for token in tokens]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def check_round_trip(vocabulary: Vocabulary, tokenizer: Any, texts: Sequence[str]) -> None:
    """Check that what a file describes makes the same ids of texts.

    Raises:
        UserError: It does not; the line has the first text.
    """
    read = read_back(vocabulary)
    for text in (TRICKY, *texts):
        was = tokenizer(text, add_special_tokens=False)["input_ids"]
        now = read.encode(text, add_special_tokens=False).ids
        if was != now:
            raise UserError(f"--format gguf: its tokenizer would make other ids of {text[:60]!r}; nothing was exported")
