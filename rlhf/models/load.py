"""Models from a hub id, a local folder or a finished stage: policies, reward models and classifiers.

A stage's folder holds an adapter on the original base model, or whole weights. Loaded as a starting point, the adapter
is merged, so that what a later stage calls its reference is that stage's model exactly.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel, TaskType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rlhf import network
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError, reason
from rlhf.models.device import sharded
from rlhf.models.heads import init_score_head
from rlhf.models.weights import (
    Misfit,
    check_adapter,
    check_complete,
    check_files,
    check_finite,
    check_pointers,
    new_modules,
)

ADAPTER_CONFIG = "adapter_config.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Where a model comes from: base weights, and at most one adapter on them."""

    base: str
    revision: str | None = None
    adapter: Path | None = None


class Scorer(NamedTuple):
    """A sequence classifier, and which of its modules are new."""

    model: PreTrainedModel
    fresh: tuple[str, ...]


def source_of(config: ModelConfig, parent: Path | None = None) -> Source:
    """The weights that a stage starts from.

    Args:
        config: The model as configured, used where there is no parent.
        parent: A finished stage's folder.

    Raises:
        UserError: The model is made from scratch, and is not there yet; or an adapter does not name its base.
    """
    if parent is None and config.name_or_path is None:
        raise UserError("model.scratch: the base stage, which makes the model, is not done")
    name = str(parent or config.name_or_path)
    folder = Path(name)
    if (folder / ADAPTER_CONFIG).is_file():
        adapter = adapter_config(folder)
        return Source(str(adapter["base_model_name_or_path"]), adapter.get("revision"), folder)
    return Source(name, None if parent else config.revision)


def adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter's config, which names its base.

    Raises:
        UserError: It is damaged.
    """
    path = folder / ADAPTER_CONFIG
    check_pointers(str(folder))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {reason(error)}") from None
    if not isinstance(config, dict) or not isinstance(config.get("base_model_name_or_path"), str):
        raise UserError(f"{path}: does not name the adapter's base model (base_model_name_or_path)")
    return config


def model_config(source: Source) -> PretrainedConfig:
    """The transformers config of a model's base weights.

    Raises:
        UserError: There is no such model, or it cannot be reached.
    """
    with _told(source.base):
        return AutoConfig.from_pretrained(source.base, **_origin(source))


def is_encoder(config: PretrainedConfig) -> bool:
    """Whether a model is a BERT-type encoder (bidirectional, trained with masks) and not a causal language model."""
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ())
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not causal


def context_length(config: PretrainedConfig) -> int | None:
    """Most positions a model has, or None where its config names no limit."""
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if length and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        length -= text.pad_token_id + 1  # positions start behind the pad token's
    return length


def check_policy(source: Source, encoder: bool) -> None:
    """Refuse an encoder where replies are to be written.

    Raises:
        UserError: The model is one.
    """
    if encoder:
        raise UserError(f"{source.base}: a masked language model cannot write replies; a policy needs a causal one")


def load_policy(source: Source, config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal language model with its adapter, if any, merged.

    Raises:
        UserError: The model cannot be loaded, or is not a causal language model.
    """
    check_policy(source, is_encoder(model_config(source)))
    model, misfit = _pretrained(AutoModelForCausalLM, source, config)
    check_complete(model, misfit, source.base)
    return _finish(model, source, tokenizer)


def load_scorer(
    source: Source, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, labels: int = 1, new_head: bool = False
) -> Scorer:
    """A sequence classifier: a reward model with one label, or a classifier with several.

    Args:
        source: Where the weights come from.
        config: Type and attention implementation.
        tokenizer: Its pad token tells the model where a sequence ends.
        labels: Outputs of the head.
        new_head: Whether a head may be made where there is none: N(0, 1/(d+1)) as for reward models, bias 0.

    Returns:
        The model, and the modules that no checkpoint gave weights.

    Raises:
        UserError: The model cannot be loaded, or has no head of this size and none may be made.
    """
    model, misfit = _pretrained(AutoModelForSequenceClassification, source, config, num_labels=labels)
    check_complete(model, misfit, source.base, new_head=True)
    fresh = new_modules(model, misfit)
    if fresh and not new_head and not _adapter_has_head(source):
        raise UserError(f"{source.base}: has no reward head with {labels} output; train one with the reward stage")
    if fresh:
        init_score_head(model)
    return Scorer(_finish(model, source, tokenizer), fresh)


def check_weights(source: Source, config: ModelConfig, scorer: bool = False) -> PreTrainedModel | None:
    """Hold that a base model's files have the weights that it needs; headers are read and no weights.

    Args:
        source: Where they come from.
        config: Type and attention implementation.
        scorer: Whether the model will be a classifier, whose head may be new.

    Returns:
        The model on the meta device; None where weights are sharded, which were looked at before the launch.

    Raises:
        UserError: They have not, or the model cannot be made.
    """
    if sharded() or is_deepspeed_zero3_enabled():
        return None
    kind = AutoModelForSequenceClassification if scorer else AutoModelForCausalLM
    model, misfit = _pretrained(kind, source, config, device_map="meta")
    check_complete(model, misfit, source.base, new_head=scorer)
    return model


def _pretrained(kind: Any, source: Source, config: ModelConfig, **options: Any) -> tuple[PreTrainedModel, Misfit]:
    """A base model, and how its files differ from its config."""
    check_files(source.base)
    with _told(source.base, config.attn_implementation), _quiet():
        model, info = kind.from_pretrained(
            source.base,
            output_loading_info=True,
            ignore_mismatched_sizes=not is_deepspeed_zero3_enabled(),
            **_arguments(source, config),
            **options,
        )
    return model, Misfit.of(info)


def _origin(source: Source) -> dict[str, Any]:
    """Where to look: without a network, on disk alone, since the client would retry for half a minute first."""
    offline = not Path(source.base).exists() and not network.hub_resolves()
    return {"revision": source.revision, "trust_remote_code": False, "local_files_only": offline}


def _arguments(source: Source, config: ModelConfig) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        **_origin(source),
        "dtype": _DTYPES[config.dtype],
        "use_safetensors": True,
    }
    if config.attn_implementation:
        arguments["attn_implementation"] = config.attn_implementation
    return arguments


def _finish(model: PreTrainedModel, source: Source, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Merge the adapter, make room for an added pad token, and let the model know pad and EOS."""
    _make_room(model, len(tokenizer))
    if source.adapter is not None:
        with _told(str(source.adapter)):
            adapter = PeftConfig.from_pretrained(str(source.adapter))
            if not model.can_generate() and adapter.task_type == TaskType.CAUSAL_LM:
                adapter.task_type = None  # a policy's adapter, under a head of another kind
            check_files(str(source.adapter))
            adapted = PeftModel.from_pretrained(model, str(source.adapter), config=adapter)
            check_adapter(adapted, source.adapter)
            model = adapted.merge_and_unload()
    if not sharded() and not is_deepspeed_zero3_enabled():
        check_finite(model, str(source.adapter or source.base))
    text = model.config.get_text_config()
    text.pad_token_id = tokenizer.pad_token_id
    if text.eos_token_id is None:
        text.eos_token_id = tokenizer.eos_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.pad_token_id = tokenizer.pad_token_id
        stops = generation.eos_token_id
        stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in stops:
            generation.eos_token_id = [tokenizer.eos_token_id, *stops]
    return model


@torch.no_grad()
def _make_room(model: PreTrainedModel, size: int) -> None:
    """Give an added pad token its row: the mean of the others, so that it is likely nowhere and the same every time."""
    known = model.get_input_embeddings().num_embeddings
    if size <= known:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:
            layer.weight[known:] = layer.weight[:known].mean(0)


def _adapter_has_head(source: Source) -> bool:
    if source.adapter is None:
        return False
    return adapter_config(source.adapter).get("task_type") == "SEQ_CLS"


@contextlib.contextmanager
def _told(name: str, attention: str | None = None) -> Iterator[None]:
    """Turn the many ways in which a model is not there into one line.

    Args:
        name: Where it should be.
        attention: The setting, where there is one: it is among what may be wrong.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = reason(error)
        if isinstance(error, KeyError) and (Path(name) / ADAPTER_CONFIG).is_file():
            said = f"its files lack {error.args[0]} (the head of a reward model is one); train the stage again"
        if isinstance(error, OSError | ValueError) and not Path(name).exists():
            said = "neither a folder here nor a model that the hub could give (is there a network?)"
        setting = f" (with model.attn_implementation: {attention})" if attention else ""
        raise UserError(f"{name}: cannot load the model{setting}: {said}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' report of weights that do not fit: we refuse them, or make a new head, ourselves."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
