"""A model without weights: its numbers by kind, their bytes, and what its passes hold for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, PretrainedConfig

from rlhf.config.project import ModelConfig
from rlhf.errors import UserError, reason
from rlhf.models.adapters import lora_config
from rlhf.models.load import context_length, model_config, source_of
from rlhf.models.quantization import nf4_bytes
from rlhf.models.tasks import LABEL, Task, task_of
from rlhf.preflight.trace import Kept, checkpointing, kept_by, kept_by_head, with_fake_weights


@dataclass(frozen=True)
class Numbers:
    """How many numbers a model has, by kind, and their bytes."""

    base: int
    """All that is no adapter."""
    base_bytes: int
    adapter: int
    adapter_bytes: int
    trained: int
    trained_bytes: int
    matrices: int
    """Numbers of the layers' matrices that a token is multiplied with."""
    merged_bytes: int
    """Bytes of the matrices that an adapter changes."""
    head: int
    """Numbers of the language-model head; 0 without one."""
    layer_bytes: int
    """Bytes of the largest layer."""
    ends_bytes: int
    """Bytes of embedding and head."""


@dataclass(frozen=True)
class Built:
    """A model with fake weights."""

    model: Any
    """Without peft's wrapping; adapters stay in its layers."""
    mode: FakeTensorMode
    config: PretrainedConfig
    task: Task
    numbers: Numbers

    @property
    def layers(self) -> int:
        """How many layers."""
        text: Any = self.config.get_text_config()
        return int(getattr(text, "num_hidden_layers", 0) or getattr(text, "num_layers", 1))

    @property
    def hidden(self) -> int:
        """Width of the states."""
        text = self.config.get_text_config()
        return int(getattr(text, "hidden_size", None) or text.hidden_sizes[-1])

    @property
    def vocabulary(self) -> int:
        """Tokens of the head's output."""
        return int(getattr(self.config.get_text_config(), "vocab_size", 0) or 0)

    @property
    def context(self) -> int | None:
        """Most tokens of a sequence."""
        return context_length(self.config)

    @property
    def cache(self) -> int:
        """Numbers that a token leaves in the cache: keys and values of every layer."""
        text = self.config.get_text_config()
        heads = getattr(text, "num_attention_heads", 1)
        width = getattr(text, "head_dim", None) or self.hidden // heads
        return 2 * self.layers * (getattr(text, "num_key_value_heads", None) or heads) * width

    def kept(self, **batch: Any) -> Kept:
        """What a pass holds; see `trace.kept_by`."""
        checkpoint = batch.pop("checkpoint", False)
        self.model.train(bool(batch.get("backward", True)))
        with checkpointing(self.model, checkpoint):
            return kept_by(self.model, self.mode, **batch)

    def kept_by_head(self, positions: int, autocast: torch.dtype | None, backward: bool) -> Kept:
        """What the whole head holds; see `trace.kept_by_head`."""
        return kept_by_head(self.model, self.mode, positions, autocast, backward)


def build(settings: ModelConfig, adapter: Mapping[str, Any] | None, scores: bool, trained: bool) -> Built:
    """A model as a stage holds it.

    Args:
        settings: Where its config comes from, and the type of its weights.
        adapter: Fields of its adapter; None for none.
        scores: Whether its head has one output.
        trained: Whether it is trained: with an adapter that alone is.

    Raises:
        UserError: The config cannot be read, or no model or adapter can be made of it.
    """
    config = _config(settings)
    task = LABEL if scores else task_of(config, settings.policy)
    if (labels := 1 if scores else task.outputs) is not None:
        config.num_labels = labels
    options: dict[str, Any] = {"dtype": getattr(torch, settings.dtype)}
    if settings.attn_implementation:
        options["attn_implementation"] = settings.attn_implementation
    try:
        with torch.device("meta"):
            model = task.model_class.from_config(config, **options)
    except Exception as error:  # an architecture's own code fails in its own way
        raise UserError(f"{settings.name_or_path}: no model can be made of its config: {reason(error)}") from None
    model.requires_grad_(trained and adapter is None)
    if adapter is not None:
        _adapt(model, dict(adapter), task)
        for name, weight in model.named_parameters():
            weight.requires_grad_(trained and "lora_" in name)
    mode = FakeTensorMode()
    with_fake_weights(model, mode)
    return Built(model, mode, config, task, _count(model, settings))


def _config(settings: ModelConfig) -> PretrainedConfig:
    if settings.name_or_path is not None:
        return model_config(source_of(settings))
    scratch = dict(settings.scratch or {})
    given, tokenizer = scratch.pop("architecture", "llama"), scratch.pop("tokenizer", None)
    size = {"vocab_size": tokenizer["vocab_size"]} if isinstance(tokenizer, dict) and "vocab_size" in tokenizer else {}
    return AutoConfig.for_model(given, **{**size, **scratch})


def _adapt(model: nn.Module, fields: dict[str, Any], task: Task) -> None:
    """Put an adapter into a meta model's layers."""
    import warnings

    from peft import get_peft_model

    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        get_peft_model(model, lora_config(fields, task.peft, joined=False))


def _count(model: Any, settings: ModelConfig) -> Numbers:
    weights = list(model.named_parameters())
    adapter = [weight for name, weight in weights if "lora_" in name]
    base = [(name, weight) for name, weight in weights if "lora_" not in name]
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    ends = embeddings | ({id(head.weight)} if head is not None else set())
    active = _active_share(model.config.get_text_config())
    inner = [weight for _, weight in base if weight.dim() > 1 and id(weight) not in ends]
    quantized = {id(weight) for weight in inner if settings.quantization is not None and weight.dim() == 2}
    sizes = {id(weight): nf4_bytes(weight.numel()) if id(weight) in quantized else weight.nbytes for _, weight in base}
    adapted = {id(layer.get_base_layer().weight) for layer in model.modules() if hasattr(layer, "get_delta_weight")}
    merged = adapted - quantized
    layers = _layers(model)
    trained = [weight for _, weight in weights if weight.requires_grad]
    return Numbers(
        base=sum(weight.numel() for _, weight in base),
        base_bytes=int(sum(sizes.values())),
        adapter=sum(weight.numel() for weight in adapter),
        adapter_bytes=_bytes(adapter),
        trained=sum(weight.numel() for weight in trained),
        trained_bytes=_bytes(trained),
        matrices=int(sum(weight.numel() * (active if weight.dim() > 2 else 1.0) for weight in inner)),
        merged_bytes=sum(_bytes([weight]) for _, weight in base if id(weight) in merged),
        head=head.weight.numel() if head is not None else 0,
        layer_bytes=max((_bytes(layer.parameters()) for layer in layers), default=0),
        ends_bytes=int(sum(size for key, size in sizes.items() if key in ends)),
    )


def _bytes(weights: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules of the longest list of modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _active_share(config: Any) -> float:
    """Share of a mixture's experts that a token goes through."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / experts if experts and used else 1.0
