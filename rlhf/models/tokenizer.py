"""Loads tokenizers, and gives them what later steps need: an EOS token, a pad token other than EOS, a chat template."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer, BaseImageProcessor, PreTrainedTokenizerBase

from rlhf import network
from rlhf.config.project import ModelConfig
from rlhf.data.tokenize import PLAIN_TEMPLATE
from rlhf.errors import UserError, reason, unknown_name
from rlhf.models.weights import check_json, check_pointers

Processor = PreTrainedTokenizerBase | BaseImageProcessor
"""What makes a model's inputs: a tokenizer, or the processor of an image model."""
ADDED_PAD = "<|pad|>"
_MARK = "sequences_end_in_eos"
_SPARE_PADS = (ADDED_PAD, "<|finetune_right_pad_id|>", "<|endoftext|>", "<|fim_pad|>", "<pad>", "[PAD]")
_WORDS = {"eos": "EOS token", "pad": "pad token", "bos": "BOS token", "padding_side": "padding side",
          "template_hash": "chat template (hash)", "hash": "vocabulary (hash)",
          "images": "image processor (hash)"}  # fmt: skip


def load_tokenizer(config: ModelConfig, source: str | Path | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer and settle its special tokens.

    Args:
        config: The model it belongs to, with the settings of special tokens and template.
        source: A stage's folder. Its tokenizer is taken as it is; `check_settings` compares it with the settings.

    Raises:
        UserError: The tokenizer cannot be loaded, the vocabulary lacks a token of the settings, or the settings name
            the same token as pad and EOS.
    """
    name = str(source or config.tokenizer or config.name_or_path)
    check_pointers(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=None if source or config.tokenizer else config.revision,
            trust_remote_code=False,
            local_files_only=not Path(name).exists() and not network.hub_resolves(),
        )
    except Exception as error:  # a damaged file raises an exception of its own kind
        check_json(name)
        raise UserError(f"{name}: no tokenizer can be loaded: {reason(error)}") from None
    if source is None:
        settle_special_tokens(tokenizer, config)
    return tokenizer


def settle_special_tokens(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Give a tokenizer the EOS token, pad token and template that training needs, in place.

    Where pad is missing or the same as EOS, an unused token of the vocabulary becomes pad. If the vocabulary has none,
    a token is added. With pad = EOS, a loss that masks padding would hide every EOS, and the model would never learn
    to stop.
    """
    for kind, token in (("eos_token", config.eos_token), ("pad_token", config.pad_token)):
        if token is not None and token not in tokenizer.get_vocab():
            hint = unknown_name(token, tokenizer.all_special_tokens)
            raise UserError(f"model.{kind}: {token!r} is not in the vocabulary; {hint}")
    if config.eos_token is not None:
        _name(tokenizer, "eos_token", config.eos_token)
    if config.pad_token is not None:
        if config.pad_token == tokenizer.eos_token:
            raise UserError(
                f"model.pad_token: {config.pad_token!r} is also EOS; the model would never learn to stop. Name another"
            )
        _name(tokenizer, "pad_token", config.pad_token)
    elif tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        _name(tokenizer, "pad_token", _spare_token(tokenizer))
    if config.chat_template is not None:
        tokenizer.chat_template = _read_template(config.chat_template)
        _try_template(tokenizer, config.chat_template)
    elif not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in (tokenizer.unk_token, *_SPARE_PADS):
        if token in vocabulary and token not in (tokenizer.eos_token, tokenizer.bos_token):
            return str(token)
    return ADDED_PAD


def _name(tokenizer: PreTrainedTokenizerBase, kind: str, token: str) -> None:
    """Make a token the EOS or pad token, as a special token; it is added to the vocabulary if it is not in it.

    A saved and loaded tokenizer treats it as special, so that this one has to split text in the same way.
    """
    if getattr(tokenizer, kind) != token:
        tokenizer.add_special_tokens({kind: token})


def mark_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Note in a tokenizer's settings that its model learned sequences that end in EOS, whatever the template writes."""
    tokenizer.init_kwargs[_MARK] = True


def ends_in_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer's model learned sequences that end in EOS, as every model trained here does."""
    return bool(tokenizer.init_kwargs.get(_MARK))


def tokenizer_record(tokenizer: Processor) -> dict[str, Any]:
    """What a stage's manifest records of its tokenizer: special tokens by name, hashes of template and vocabulary.

    The hash of the vocabulary covers merges, normalisation and added tokens with their ids. Of an image processor it
    records the hash of its settings.
    """
    if isinstance(tokenizer, BaseImageProcessor):
        return {"images": _digest(tokenizer.to_json_string())}
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for transient in ("truncation", "padding"):  # set by the last call: no property of the tokenizer
            state.pop(transient, None)
    else:
        state = tokenizer.get_vocab()
    return {
        "eos": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
        "bos": tokenizer.bos_token,
        "padding_side": tokenizer.padding_side,
        "size": len(tokenizer),
        "template_hash": _digest(str(tokenizer.chat_template)),
        "hash": _digest(json.dumps(state, sort_keys=True)),
    }


def check_tokenizer(tokenizer: Processor, recorded: dict[str, Any], name: str | Path) -> None:
    """Check that a tokenizer or image processor is the one that a manifest describes.

    Args:
        tokenizer: As loaded.
        recorded: What `tokenizer_record` gave when the stage ran; an older record may have fewer keys.
        name: What to call the stage in a message.

    Raises:
        UserError: It differs; the message has both values of the first difference.
    """
    for key, now in tokenizer_record(tokenizer).items():
        if key in recorded and recorded[key] != now:
            raise UserError(
                f"{name}: the tokenizer's {_WORDS.get(key, key)} was {recorded[key]!r} when the stage ran and is "
                f"{now!r} now"
            )


def check_settings(tokenizer: PreTrainedTokenizerBase, config: ModelConfig, name: str | Path) -> None:
    """Check that a finished stage's tokenizer has the special tokens and the template that the settings name.

    A later stage takes its parent's tokenizer, so that settings changed since would have no effect.

    Args:
        tokenizer: The finished stage's.
        config: The model settings that the stage was, or would be, trained with.
        name: What to call the stage in a message.

    Raises:
        UserError: It has others; the message has both values.
    """
    template = None if config.chat_template is None else _read_template(config.chat_template)
    wanted = {"eos_token": config.eos_token, "pad_token": config.pad_token, "chat_template": template}
    for key, value in wanted.items():
        present = getattr(tokenizer, key)
        if value is not None and value != present:
            both = (_digest(str(present)), _digest(value)) if key == "chat_template" else (present, value)
            raise UserError(
                f"model.{key}: {name} was trained with {both[0]!r}, the settings now say {both[1]!r}; "
                "run that stage again, or put the setting back"
            )


def _read_template(path: str) -> str:
    if Path(path).is_fifo():
        raise UserError(f"model.chat_template: {path}: a pipe, which cannot be read twice; write it to a file first")
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"model.chat_template: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"model.chat_template: {path}: not a text file in UTF-8") from None


def _try_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Check that a template writes a conversation; a template may refuse this one by rules of its own.

    Raises:
        UserError: It is no valid Jinja, fails, or leaves out what the messages say.
    """
    texts = ("question", "answer")
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateSyntaxError as error:
        raise UserError(f"model.chat_template: {path}:{error.lineno}: not valid Jinja: {reason(error)}") from None
    except Exception as error:
        if type(error) is TemplateError:  # raised by the template itself
            return
        raise UserError(f"model.chat_template: {path}: fails at a question and an answer: {reason(error)}") from None
    if missing := [text for text in texts if text not in rendered]:
        raise UserError(f"model.chat_template: {path}: does not write what a message says (its {missing[0]!r} is lost)")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
