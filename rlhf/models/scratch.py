"""A base model made from nothing: random weights of a given shape, with a tokenizer given or trained on the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)

from rlhf.config import ModelConfig, ProjectConfig
from rlhf.errors import UserError
from rlhf.models.load import is_encoder
from rlhf.models.tokenizer import ADDED_PAD, load_tokenizer, settle_special_tokens
from rlhf.stages import Metrics, StageContext

_OWN = ("architecture", "tokenizer")
END = "<|end|>"


def build(context: StageContext) -> Metrics:
    """The `base` stage of a project whose model is `scratch:`: write a model with random weights and its tokenizer.

    Raises:
        UserError: The architecture is unknown, or a field does not fit it.
    """
    project = context.project
    scratch = dict(project.model.scratch or {})
    if "architecture" not in scratch:
        raise UserError("model.scratch: 'architecture' is missing (llama, gpt2, bert, …)")
    tokenizer = _tokenizer(project, scratch.get("tokenizer") or {})
    fields = {key: value for key, value in scratch.items() if key not in _OWN}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    set_seed(project.seed)
    try:
        config = AutoConfig.for_model(scratch["architecture"], **{"vocab_size": len(tokenizer), **special, **fields})
        kind = AutoModelForMaskedLM if is_encoder(config) else AutoModelForCausalLM
        model = kind.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"model.scratch: {str(error).splitlines()[0]}") from None
    model.save_pretrained(context.directory)
    tokenizer.save_pretrained(context.directory)
    return {"parameters": model.num_parameters()}


def _tokenizer(project: ProjectConfig, wanted: str | dict[str, Any]) -> PreTrainedTokenizerBase:
    if isinstance(wanted, str):
        return load_tokenizer(ModelConfig(name_or_path=str(project.resolve(wanted))))
    unknown = set(wanted) - {"vocab_size"}
    if unknown:
        raise UserError(f"model.scratch.tokenizer: unknown key {unknown.pop()!r}; known: vocab_size")
    return train_tokenizer(_texts(project), wanted.get("vocab_size", 4096))


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE with digits as single tokens, an end token and a pad token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[ADDED_PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=ADDED_PAD)
    settle_special_tokens(tokenizer, ModelConfig(name_or_path="scratch"))
    return tokenizer


def _texts(project: ProjectConfig) -> Iterator[str]:
    """The texts of the training side of the project's sets: what a tokenizer may see."""
    from rlhf.data.prepare import iter_records

    for role in ("demonstrations", "preferences"):
        if getattr(project.data, role) is None:
            continue
        for record, side in iter_records(project, role):
            if side != "train":
                continue
            for part in ("prompt", "completion", "chosen", "text"):
                value = getattr(record, part, "")
                yield from [value] if isinstance(value, str) else (message["content"] for message in value)
