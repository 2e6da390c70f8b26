"""Loads policies and reward models from a hub id, a local folder or a stage's folder.

A stage's folder holds an adapter on the original base model, or whole weights. An adapter is merged on loading, or kept
beside weights in 4 bits, so that the reference of a later stage is exactly this stage's model.

`artifacts.open` checks what a stage recorded, too: use `open_stage` for a finished stage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed

from rlhf import network
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError, reason
from rlhf.models.device import EFFICIENT_LOADING, main_reads_alone, reads_weights
from rlhf.models.heads import init_score_head
from rlhf.models.quantization import loading_arguments, merge_or_keep, settle
from rlhf.models.settings import ADAPTER_CONFIG
from rlhf.models.tasks import CAUSAL_LM, LABEL, Task, adapter_task, is_encoder
from rlhf.models.tokenizer import Processor
from rlhf.models.unwritten import match_main, unwritten
from rlhf.models.weights import (
    Misfit,
    check_adapter,
    check_complete,
    check_files,
    check_finite,
    check_json,
    check_pointers,
    new_modules,
)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Where a model comes from: base weights, and at most one adapter on them."""

    base: str
    revision: str | None = None
    adapter: Path | None = None


class Loaded(NamedTuple):
    """A model."""

    model: PreTrainedModel
    fresh: tuple[str, ...]
    """Its modules that no checkpoint gave weights."""


def source_of(config: ModelConfig, parent: Path | None = None) -> Source:
    """The weights that a stage starts from.

    Args:
        config: The model as configured; used where there is no parent.
        parent: A finished stage's folder.

    Raises:
        UserError: The model is made from scratch, which has not been done yet; or an adapter does not name its base.
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
        UserError: The model does not exist, cannot be reached, or asks for code from the hub.
    """
    check_pointers(source.base)
    with _as_user_error(source.base):
        config = AutoConfig.from_pretrained(source.base, **_origin(source))
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))):
        if "/" in str(wanted := getattr(part, "_attn_implementation", None)):
            raise UserError(
                f"{source.base}: its config asks for attention by {wanted!r}, code from the hub, which is not run"
            )
    return config


def context_length(config: PretrainedConfig) -> int | None:
    """The number of positions of a model, or None where its config names no limit."""
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if length and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        length -= text.pad_token_id + 1  # their positions start after the pad token's id
    return length


def load_model(
    source: Source,
    config: ModelConfig,
    processor: Processor,
    task: Task = CAUSAL_LM,
    labels: int | None = None,
    new_head: bool = False,
    to_shard: bool = False,
) -> Loaded:
    """Load a model with the head of a task, its adapter merged.

    Args:
        source: Where the weights come from.
        config: Type of the weights, quantization and attention implementation.
        processor: A tokenizer's pad token tells the model where a sequence ends.
        task: What the head computes; `LABEL` for a reward model, too, which has one label.
        labels: Outputs of the head, where the task leaves that open.
        new_head: Whether to make a head where the files have none, as `heads.init_score_head` does.
        to_shard: Whether a trainer will shard the weights over the processes. Then the main process alone reads them,
            and the model of every other has memory for them that nothing has been written to.

    Raises:
        UserError: The model cannot be loaded, or has no head of this task and size and may get none.
    """
    alone, empty = to_shard and main_reads_alone(), to_shard and not reads_weights()
    with whole_on_loading():
        loaded = _load_model(source, config, processor, task, labels, new_head, empty)
    if alone:
        match_main(loaded.model, source.base)
    return loaded


def _load_model(
    source: Source, config: ModelConfig, processor: Processor, task: Task, labels: int | None, new_head: bool,
    empty: bool,
) -> Loaded:  # fmt: skip
    if task is CAUSAL_LM and is_encoder(model_config(source)):
        raise UserError(f"{source.base}: a masked language model cannot write replies; that takes a causal one")
    labels = task.outputs if labels is None else labels
    options = {} if labels is None else {"num_labels": labels}
    model, misfit = _pretrained(
        task.model_class, source, config, **options, **({"device_map": "meta"} if empty else {})
    )
    check_complete(model, misfit, source.base, new_head=task.new_head)
    fresh = new_modules(model, misfit) if task.new_head else ()
    if fresh and not new_head and not _adapter_has_head(source):
        what = "reward head with 1 output" if labels == 1 else f"head for a {task.policy} policy"
        raise UserError(f"{source.base}: has no {what}; train one with the {'reward' if labels == 1 else 'sft'} stage")
    if empty:
        return Loaded(unwritten(task.model_class, model, lambda made: _fit(made, processor)), fresh)
    if fresh:
        init_score_head(model)
    return Loaded(_finish(model, source, processor), fresh)


def load_policy(
    source: Source,
    config: ModelConfig,
    processor: Processor,
    task: Task = CAUSAL_LM,
    labels: int | None = None,
    to_shard: bool = False,
) -> PreTrainedModel:
    """Load a policy, whose head must be there; see `load_model`."""
    return load_model(source, config, processor, task, labels, to_shard=to_shard).model


def load_scorer(
    source: Source,
    config: ModelConfig,
    processor: Processor,
    labels: int = 1,
    new_head: bool = False,
) -> Loaded:
    """Load a sequence classifier: a reward model has one label; see `load_model`."""
    return load_model(source, config, processor, LABEL, labels, new_head)


def check_weights(source: Source, config: ModelConfig, task: Task = CAUSAL_LM) -> PreTrainedModel:
    """Check that a base model's files have the weights that it needs; only the files' headers are read.

    Args:
        source: Where the weights come from.
        config: Type and attention implementation.
        task: What its head will compute; the head may be new where the task allows it.

    Returns:
        The model on the meta device.

    Raises:
        UserError: Weights are missing, or the model cannot be made.
    """
    with whole_on_loading():
        plain = replace(config, quantization=None)  # the files are those of the unquantized model
        model, misfit = _pretrained(task.model_class, source, plain, device_map="meta")
    check_complete(model, misfit, source.base, new_head=task.new_head)
    return model


@contextlib.contextmanager
def whole_on_loading() -> Iterator[None]:
    """Within, a model is loaded whole under ZeRO-3 and FSDP, too: its adapter is merged, its weights are checked first.

    Under ZeRO-3 transformers would partition the weights while it reads them; DeepSpeed does when training begins.
    Under FSDP it would read them on the first process alone; a model that no trainer shards is whole on all.
    """
    settings, efficient = deepspeed._hf_deepspeed_config_weak_ref, os.environ.pop(EFFICIENT_LOADING, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = settings
        if efficient is not None:
            os.environ[EFFICIENT_LOADING] = efficient


def _pretrained(kind: Any, source: Source, config: ModelConfig, **options: Any) -> tuple[PreTrainedModel, Misfit]:
    """Load a base model, and say how its files differ from its config."""
    check_files(source.base)
    quantized = loading_arguments(config, kind, model_config(source))  # a config that asks for no code
    with _as_user_error(source.base, config.attn_implementation), _quiet():
        model, info = kind.from_pretrained(
            source.base,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_arguments(source, config),
            **quantized,
            **options,
        )
    if quantized:
        settle(model, source.base)
    return model, Misfit.of(info)


def _origin(source: Source) -> dict[str, Any]:
    """Where to look: without a network only on disk, as the hub's client would retry for half a minute."""
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


def _finish(model: PreTrainedModel, source: Source, processor: Processor) -> PreTrainedModel:
    """Merge the adapter, make room for an added pad token, and tell the model its pad and EOS tokens."""
    if isinstance(processor, PreTrainedTokenizerBase):
        _make_room(model, len(processor))
    if source.adapter is not None:
        with _as_user_error(str(source.adapter)):
            adapter = PeftConfig.from_pretrained(str(source.adapter))
            if not model.can_generate() and adapter.task_type == CAUSAL_LM.peft:
                adapter.task_type = None  # a policy's adapter under a classifier's head
            check_files(str(source.adapter))
            if not (source.adapter / SAFETENSORS_WEIGHTS_NAME).is_file():  # else peft takes a pickled file
                raise UserError(f"{source.adapter}: has no {SAFETENSORS_WEIGHTS_NAME}; save the adapter as safetensors")
            adapted = PeftModel.from_pretrained(model, str(source.adapter), config=adapter)
            check_adapter(adapted, source.adapter)
            model = merge_or_keep(adapted, source.adapter)
    check_finite(model, str(source.adapter or source.base))
    if isinstance(processor, PreTrainedTokenizerBase):
        _name_special_tokens(model, processor)
    return model


def _fit(model: PreTrainedModel, processor: Processor) -> None:
    """Fit a model without an adapter to its tokenizer, as `_finish` does."""
    if isinstance(processor, PreTrainedTokenizerBase):
        _make_room(model, len(processor))
        _name_special_tokens(model, processor)


def _name_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a model its pad and EOS tokens."""
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


@torch.no_grad()
def _make_room(model: PreTrainedModel, size: int) -> None:
    """Give an added pad token its row: the mean of the others, which is unlikely everywhere and always the same."""
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.num_embeddings
    if size <= known:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    layers: tuple[Any, Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    for layer in layers:
        if layer is not None:
            layer.weight[known:] = layer.weight[:known].mean(0)


def _adapter_has_head(source: Source) -> bool:
    if source.adapter is None:
        return False
    return adapter_task(adapter_config(source.adapter)).new_head


@contextlib.contextmanager
def _as_user_error(name: str, attention: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises while it loads a model into a line.

    Args:
        name: Where the model should be.
        attention: `model.attn_implementation` where it is set, as it may be the cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        check_json(name)
        why = reason(error)
        if isinstance(error, KeyError) and (Path(name) / ADAPTER_CONFIG).is_file():
            why = f"its files lack {error.args[0]} (the head of a reward model is one); train the stage again"
        if isinstance(error, OSError | ValueError) and not Path(name).exists():
            why = "neither a folder here nor a model that the hub could give (is there a network?)"
        setting = f" (with model.attn_implementation: {attention})" if attention else ""
        raise UserError(f"{name}: cannot load the model{setting}: {why}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' report of weights that do not fit: this module refuses them, or makes a new head."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
