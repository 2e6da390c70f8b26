"""A tokenizer that every later step can rely on: an EOS, a pad token that is not EOS, a chat template."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf import network
from rlhf.config import ModelConfig
from rlhf.data.tokenize import PLAIN_TEMPLATE
from rlhf.errors import UserError, unknown_name

ADDED_PAD = "<|pad|>"
_SPARE_PADS = (ADDED_PAD, "<|finetune_right_pad_id|>", "<|endoftext|>", "<|fim_pad|>", "<pad>", "[PAD]")


def load_tokenizer(config: ModelConfig, source: str | Path | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer and settle its special tokens.

    Args:
        config: The model it belongs to; its token and template settings apply.
        source: A stage's folder; its tokenizer is settled already, and the settings of `config` must agree with it.

    Raises:
        UserError: It cannot be found, a named token is not in the vocabulary, or pad and EOS are named the same.
    """
    name = str(source or config.tokenizer or config.name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=None if source or config.tokenizer else config.revision,
            trust_remote_code=False,
            local_files_only=not Path(name).exists() and not network.hub_resolves(),
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{name}: no tokenizer can be loaded: {_first_line(error)}") from None
    if source is None:
        settle_special_tokens(tokenizer, config)
    return tokenizer


def settle_special_tokens(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Give a tokenizer the EOS, pad and template that training needs, in place.

    pad = EOS hides every EOS from a loss that masks padding, so the model never learns to stop. Where the two coincide
    or pad is missing, an unused token of the vocabulary becomes pad; only where there is none is one added.
    """
    for kind, token in (("eos_token", config.eos_token), ("pad_token", config.pad_token)):
        if token is not None and token not in tokenizer.get_vocab():
            hint = unknown_name(token, tokenizer.all_special_tokens)
            raise UserError(f"model.{kind}: {token!r} is not in the vocabulary; {hint}")
    if config.eos_token is not None:
        tokenizer.eos_token = config.eos_token
    if config.pad_token is not None:
        if config.pad_token == tokenizer.eos_token:
            raise UserError(
                f"model.pad_token: {config.pad_token!r} is also EOS; the model would never learn to stop. Name another"
            )
        tokenizer.pad_token = config.pad_token
    elif tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _spare_token(tokenizer)
    if config.chat_template is not None:
        try:
            tokenizer.chat_template = Path(config.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"model.chat_template: {config.chat_template}: {error.strerror}") from None
    elif not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in (tokenizer.unk_token, *_SPARE_PADS):
        if token in vocabulary and token not in (tokenizer.eos_token, tokenizer.bos_token):
            return str(token)
    tokenizer.add_special_tokens({"pad_token": ADDED_PAD})
    return ADDED_PAD


def tokenizer_record(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a stage's contract says of its tokenizer: hashes of vocabulary and template, special tokens by name."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for transient in ("truncation", "padding"):  # left behind by the last call, no property of the tokenizer
            state.pop(transient, None)
    else:
        state = tokenizer.get_vocab()
    return {
        "hash": hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest(),
        "template_hash": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "eos": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
        "size": len(tokenizer),
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
