"""Base models in 4 bits (QLoRA): loading them, and keeping the adapter of an earlier stage exact on them.

bitsandbytes holds the weights of the linear layers of the backbone as nf4 (Dettmers et al., "QLoRA", 2023): 4 bits a
weight and a scale for each block of 64, itself in 8 bits. Embeddings, norms, biases and the head keep their type. The
weights are quantized while they are read, and a layer is computed with the values that its 4 bits stand for.

An adapter cannot be merged into such weights: the sum would be rounded to 4 bits again. So the adapter of an earlier
stage stays beside them, frozen, and a layer computes

    W x + B A x

The model without a further adapter is then exactly what the earlier stage left: the reference of the next one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from rlhf import processes
from rlhf.config.project import ModelConfig
from rlhf.errors import UserError
from rlhf.models.device import main_reads_alone

BLOCK, SCALES = 64, 256
"""Weights that share a scale, and scales that share one."""
_LIBRARY = torch.library.Library("bitsandbytes", "IMPL")
"""Holds the kernels that are registered here; they are gone with it."""
_NOT_KEPT = ("use_dora", "lora_bias", "alora_invocation_tokens")
"""LoRA settings under which a layer computes something else than W x + sBA x."""


def nf4_bytes(weights: int) -> int:
    """Memory of a linear layer's weights in nf4 with double quantization, without fixed tables.

    Args:
        weights: How many numbers the layer's matrix has.

    Returns:
        Bytes: half a byte a weight, a byte for each block of 64, and 4 for each 256 of these.
    """
    blocks = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + blocks + 4 * math.ceil(blocks / SCALES)


def weight_bytes(model: PreTrainedModel, quantization: str | None) -> int:
    """Memory of a model's weights.

    Args:
        model: The model, unquantized; on the meta device, say.
        quantization: How it will be held.
    """
    held = sum(weight.nbytes for weight in model.parameters())
    if quantization is None:
        return held
    apart = tuple(f"{name}." for name in _unquantized(model))
    layers = [part for name, part in model.named_modules()
              if isinstance(part, nn.Linear) and not f"{name}.".startswith(apart)]  # fmt: skip
    return held + sum(nf4_bytes(layer.weight.numel()) - layer.weight.nbytes for layer in layers)


def check_quantization(settings: ModelConfig, config: PretrainedConfig, name: str) -> None:
    """Check that a stage can train an adapter on its base as `model.quantization` asks for.

    Args:
        settings: The model's settings.
        config: The config of the base.
        name: What to call the base in a message.

    Raises:
        UserError: bitsandbytes is not installed, the launch would shard the weights, or the files are quantized.
    """
    if (stored := getattr(config, "quantization_config", None)) is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
        raise UserError(
            f"{name}: its files are quantized already ({getattr(method, 'value', method)}), and no stage trains on "
            "those; take the unquantized model, and model.quantization: nf4 to hold it in 4 bits"
        )
    if settings.quantization is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("model.quantization needs bitsandbytes: pip install 'rlhf-pipeline[quantization]'")
    if main_reads_alone() or processes.asked_for("FSDP") or processes.asked_for("DEEPSPEED"):
        raise UserError(
            "model.quantization: weights in 4 bits are not sharded over processes; each process holds them all: launch "
            "with recipes/accelerate/ddp.yaml, or leave quantization out"
        )


def check_keepable(adapter: LoraConfig) -> None:
    """Check that an adapter on a base in 4 bits can be kept beside its weights later.

    Raises:
        UserError: It is more than a low-rank update.
    """
    for name in _NOT_KEPT:
        if getattr(adapter, name):
            raise UserError(
                f"model.adapter: {name} is more than a low-rank update, which model.quantization takes none of; leave "
                "one of them out"
            )


def loading_arguments(settings: ModelConfig, kind: Any, config: PretrainedConfig) -> dict[str, Any]:
    """What `from_pretrained` takes to hold a base as its settings ask for; nothing for one that is not quantized.

    The weights are quantized on the device on which they stay, since moving them is not for every caller.

    Args:
        settings: Type of the weights, in which they are computed too, and quantization.
        kind: The class that loads the model.
        config: The config of the base.
    """
    if settings.quantization is None:
        return {}
    return {
        "quantization_config": BitsAndBytesConfig(
            **quantization_arguments(settings.dtype, unquantized_parts(kind, config))
        ),
        "device_map": {"": processes.state().device},
    }


def quantization_arguments(dtype: str, unquantized: list[str]) -> dict[str, Any]:
    """nf4 with double quantization, as arguments of transformers' `BitsAndBytesConfig`.

    Args:
        dtype: The type that layers compute in.
        unquantized: Names of the modules that keep their type.
    """
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
        "llm_int8_skip_modules": unquantized,
    }


def unquantized_parts(kind: Any, config: PretrainedConfig) -> list[str]:
    """Modules of a model that keep their type: its heads, and the pooler, which is trained with a new head.

    transformers keeps only the last module that has weights, which is not always the whole head.

    Args:
        kind: The class that loads the model.
        config: The config of the base.
    """
    with torch.device("meta"):
        return _unquantized(kind.from_config(config))


def _unquantized(model: Any) -> list[str]:
    backbone, prefix = model.base_model, model.base_model_prefix
    if backbone is model:  # encoder and decoder of T5 stand beside its head
        return [name for name, part in model.named_children() if isinstance(part, nn.Linear)]
    outside = [name for name, part in model.named_children() if part is not backbone]
    return outside + ([f"{prefix}.pooler"] if getattr(backbone, "pooler", None) is not None else [])


def settle(model: PreTrainedModel, name: str) -> None:
    """Check what was quantized, and keep bitsandbytes from changing it later, in place.

    On CPUs with AVX512-BF16 it would lay the weights out anew in the first forward pass in evaluation mode. Gradients
    are wrong from then on: by 79% of their norm in a Llama of two layers (bitsandbytes 0.50.2).

    Args:
        model: The model as loaded.
        name: What to call it in a message.

    Raises:
        UserError: Nothing was quantized: the model has no linear layers of the ordinary kind.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    if not layers:
        raise UserError(
            f"{name}: model.quantization: {type(model).__name__} has no linear layers that can be held in 4 bits; "
            "leave quantization out"
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    read_blocks_on_cpus()


@functools.cache
def read_blocks_on_cpus() -> None:
    """Make bitsandbytes read weights whose blocks run on from row to row as it wrote them, on CPUs.

    Its kernel begins a block anew with each row (0.50.2). Where 64 does not divide a row, weights get the scales of
    others, and are off by 23% of their mean size instead of 9%. The kernel is called with all weights as one row.
    """
    kernel = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")
    keys = torch.DispatchKeySet(torch.DispatchKey.CPU)

    def as_one_row(
        packed: torch.Tensor, scales: torch.Tensor, block: int, kind: str, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        whole: torch.Tensor = kernel.call_boxed(keys, packed, scales, block, kind, [math.prod(shape)], dtype)
        return whole.reshape(shape)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*overridden", UserWarning)
        _LIBRARY.impl("dequantize_4bit", as_one_row, "CPU", allow_override=True)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The linear layers of a model whose weights are quantized, by name."""
    for name, layer in model.named_modules():
        if _in_4_bits(layer):
            yield name, layer


def _in_4_bits(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and getattr(layer.weight, "quant_state", None) is not None


def is_quantized(model: nn.Module) -> bool:
    """Whether any of a model's weights are quantized."""
    return next(quantized_layers(model), None) is not None


def merge_or_keep(adapted: PeftModel, folder: Path) -> PreTrainedModel:
    """A model with its adapter part of it: merged, and on quantized layers kept beside the weights.

    Args:
        adapted: A model with one adapter.
        folder: The adapter's, for messages.

    Raises:
        UserError: The adapter is more on a quantized layer than W + sBA.
    """
    base: Any = adapted.get_base_model()
    for name, layer in list(base.named_modules()):
        if not hasattr(layer, "get_base_layer") or not _in_4_bits(layer.get_base_layer()):
            continue
        (adapter,) = layer.active_adapters
        if layer.lora_variant or any(layer.lora_bias.values()):
            raise UserError(f"{folder}: {name} has more than a low-rank update, which a base in 4 bits cannot keep")
        inner, scaling = layer.get_base_layer(), layer.scaling[adapter]
        keep_beside(inner, layer.lora_A[adapter].weight.data, scaling * layer.lora_B[adapter].weight.data)
        base.set_submodule(name, inner)
    return adapted.merge_and_unload()


def keep_beside(layer: Any, down: torch.Tensor, up: torch.Tensor) -> None:
    """Make a linear layer compute W x + up (down x), with both frozen.

    Args:
        layer: The layer; it may have no such update yet.
        down: A, [r, in].
        up: sB, [out, r].
    """
    layer.parent_A, layer.parent_B = (nn.Parameter(part, requires_grad=False) for part in (down, up))
    layer.register_forward_hook(_add_update)


def _add_update(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """The output of a layer and of the update beside it, which computes in its own type, as peft's adapters do."""
    (states,) = inputs
    update = F.linear(F.linear(states.to(layer.parent_A.dtype), layer.parent_A), layer.parent_B)
    return output + update.to(output.dtype)


@contextlib.contextmanager
def as_unquantized(model: Any) -> Iterator[None]:
    """Within, a model's config is that of the unquantized model, and it saves the weights that it is told to save."""
    quantizer = getattr(model, "hf_quantizer", None)  # of a model that was loaded
    if quantizer is None:
        yield
        return
    settings, model.hf_quantizer = model.config.quantization_config, None
    del model.config.quantization_config
    try:
        yield
    finally:
        model.hf_quantizer, model.config.quantization_config = quantizer, settings


@torch.no_grad()
def dense_weight(layer: Any) -> torch.Tensor:
    """The weight that a quantized layer computes with, its update added, [out, in] in the type of its computations."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    if (down := getattr(layer, "parent_A", None)) is None:
        return weight
    return (weight.to(down.dtype) + layer.parent_B @ down).to(weight.dtype)
