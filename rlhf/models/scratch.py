"""A base model with random weights of a given shape, and a tokenizer that is given or trained on the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rlhf.config.project import ModelConfig, ProjectConfig
from rlhf.errors import UserError, reason, unknown_name
from rlhf.models.device import check_memory
from rlhf.models.tasks import is_encoder, reads_images
from rlhf.models.tokenizer import ADDED_PAD, load_tokenizer, settle_special_tokens

_OWN = ("architecture", "tokenizer")
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "max_position_embeddings", "vocab_size", "d_ff", "d_kv", "num_decoder_layers", "decoder_layers",
          "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim")  # fmt: skip
_BYTES = 256
_LARGEST = 2**24
END, CLS, SEP = "<|end|>", "<|cls|>", "<|sep|>"


def build(project: ProjectConfig, folder: Path) -> PreTrainedModel:
    """Write a model with random weights, as `model.scratch` describes it, and its tokenizer.

    Raises:
        UserError: The architecture is unknown, a field does not fit it, or the model does not fit into memory.
    """
    scratch = dict(project.model.scratch or {})
    architecture = scratch.get("architecture")
    if not isinstance(architecture, str) or architecture not in CONFIG_MAPPING_NAMES:
        raise UserError(f"model.scratch.architecture: unknown {architecture!r}; llama, gpt2, bert, t5 and vit are some")
    if reads_images(AutoConfig.for_model(architecture)):
        return _image_model(project, scratch, folder)
    masked = AutoConfig.for_model(architecture) if architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES else None
    encoder = masked if masked is not None and is_encoder(masked) else None
    tokenizer = _tokenizer(project, scratch.get("tokenizer") or {}, encoder)
    fields = {key: value for key, value in scratch.items() if key not in _OWN}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    try:
        special |= _decoder_tokens(architecture, tokenizer)
        config = AutoConfig.for_model(architecture, **{"vocab_size": len(tokenizer), **special, **fields})
        _check_fields(config, fields, len(tokenizer))
        kind: Any = AutoModelForMaskedLM if is_encoder(config) else AutoModelForCausalLM
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else kind
        with torch.device("meta"):
            weights = kind.from_config(config, dtype=torch.float32).num_parameters()
            check_memory("model.scratch", weights, 4 * weights)
        set_seed(project.seed)
        model = kind.from_config(config, dtype=torch.float32)
    except UserError:
        raise
    except Exception as error:  # an architecture's own code fails in its own way at a size that it does not expect
        raise UserError(f"model.scratch: no {architecture} can be made of these sizes: {reason(error)}") from None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def _decoder_tokens(architecture: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """What a decoder starts with, the pad token as in T5: an architecture's defaults are for its own vocabulary."""
    default = AutoConfig.for_model(architecture)
    if not default.is_encoder_decoder:
        return {}
    ends = {"forced_eos_token_id": tokenizer.eos_token_id} if hasattr(default, "forced_eos_token_id") else {}
    return {"decoder_start_token_id": tokenizer.pad_token_id, **ends}


def _image_model(project: ProjectConfig, scratch: dict[str, Any], folder: Path) -> PreTrainedModel:
    """Write an image model without a head, and a processor that resizes images and makes their values -1 to 1."""
    architecture = scratch.pop("architecture")
    if "tokenizer" in scratch:
        raise UserError(f"model.scratch.tokenizer: {architecture} reads images and has no tokenizer; take it out")
    size = scratch.get("image_size")
    if type(size) is not int or size < 1:
        raise UserError(f"model.scratch.image_size: expected the pixels of a side, a whole number, not {size!r}")
    known = vars(AutoConfig.for_model(architecture))
    fields = {key: value for key, value in scratch.items() if key != "image_size" or key in known}
    try:
        config = AutoConfig.for_model(architecture, **fields)
        _check_fields(config, fields)
        with torch.device("meta"):
            weights = AutoModel.from_config(config, dtype=torch.float32).num_parameters()
            check_memory("model.scratch", weights, 4 * weights)
        set_seed(project.seed)
        model = AutoModel.from_config(config, dtype=torch.float32)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"model.scratch: no {architecture} can be made of these sizes: {reason(error)}") from None
    middle = [0.5] * config.num_channels
    processor = ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=middle, image_std=middle)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def _check_fields(config: PretrainedConfig, fields: dict[str, Any], tokens: int | None = None) -> None:
    """Check that the architecture has each field, that sizes are positive, and that each token has an embedding.

    Raises:
        UserError: A field is wrong. transformers would keep an unknown field and never read it.
    """
    known = {field.name for field in dataclasses.fields(config)}
    for key in fields:
        if key in vars(config) and key not in known:
            hint = unknown_name(key, known | set(config.attribute_map))
            raise UserError(f"model.scratch: {config.model_type} has no field {key!r}; {hint}")
    for key in _SIZES:
        size = getattr(config, key, None)
        if isinstance(size, int) and size < 1:
            raise UserError(f"model.scratch.{config.attribute_map.get(key, key)} must be at least 1, not {size}")
    if tokens is not None and config.vocab_size < tokens:
        raise UserError(f"model.scratch.vocab_size: {config.vocab_size} rows for {tokens} tokens; leave it out")


def _tokenizer(project: ProjectConfig, wanted: Any, encoder: PretrainedConfig | None) -> PreTrainedTokenizerBase:
    if isinstance(wanted, str):
        return load_tokenizer(ModelConfig(name_or_path=str(project.resolve(wanted))))
    if not isinstance(wanted, dict):
        raise UserError(f"model.scratch.tokenizer: expected a folder or {{vocab_size: N}}, not {wanted!r}")
    unknown = set(wanted) - {"vocab_size"}
    if unknown:
        raise UserError(f"model.scratch.tokenizer: unknown key {unknown.pop()!r}; known: vocab_size")
    size = wanted.get("vocab_size", 4096)
    special = _special(encoder is not None)
    least = _BYTES + len(special)
    if type(size) is not int or not least <= size <= _LARGEST:
        raise UserError(
            f"model.scratch.tokenizer.vocab_size: expected a whole number from {least} (the bytes and {len(special)} "
            f"special tokens) to {_LARGEST}, not {size!r}"
        )
    return train_tokenizer(_texts(project), size, encoder)


def _special(encoder: bool) -> list[str]:
    return [ADDED_PAD, END, *((CLS, SEP) if encoder else ())]


def train_tokenizer(
    texts: Iterator[str], vocab_size: int, encoder: PretrainedConfig | None = None
) -> PreTrainedTokenizerBase:
    """A byte-level BPE with digits as single tokens, an end token and a pad token.

    Args:
        texts: What it is trained on.
        vocab_size: Its tokens.
        encoder: The encoder that it is for, if it is: that reads `CLS text SEP`, or `CLS text SEP text SEP`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_special(encoder is not None),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    framing: dict[str, Any] = {}
    if encoder is not None:
        framing = {"cls_token": CLS, "sep_token": SEP}
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
            special_tokens=[(token, bpe.token_to_id(token)) for token in framing.values()],
        )  # fmt: skip
        if getattr(encoder, "type_vocab_size", 0) > 1:
            framing["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=ADDED_PAD, **framing)
    settle_special_tokens(tokenizer, ModelConfig(name_or_path="scratch"))
    return tokenizer


def _texts(project: ProjectConfig) -> Iterator[str]:
    """The texts of the training side of the project's sets: what a tokenizer may see."""
    from rlhf.data.prepare import iter_records
    from rlhf.data.records import Image

    for role in ("demonstrations", "preferences"):
        if getattr(project.data, role) is None:
            continue
        for record, side in iter_records(project, role):
            if side != "train":
                continue
            for part in ("prompt", "completion", "chosen", "text"):
                value = getattr(record, part, "")
                if isinstance(value, Image):
                    continue
                yield from [value] if isinstance(value, str) else (message["content"] for message in value)
