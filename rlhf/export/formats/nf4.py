"""4-bit weights by bitsandbytes: NF4 in blocks of 64, whose scales are quantised too; the rest stays as it is."""

from __future__ import annotations

from pathlib import Path

from transformers import BitsAndBytesConfig, PreTrainedModel

from rlhf.export.formats import Format
from rlhf.export.formats._quantised import write_quantised
from rlhf.export.prune import linear_layers
from rlhf.models.quantization import quantization_arguments, unquantized_parts
from rlhf.publish.build import Finished

_BLOCK = 64
"""Weights that share a scale."""


def write(model: PreTrainedModel, whole: Finished, folder: Path) -> list[str]:
    """Write the model with the linear layers of its backbone in NF4."""
    kept = unquantized_parts(whole.task.model_class, model.config)
    arguments = quantization_arguments(whole.opened.settings.dtype, kept)
    notes = write_quantised(model, whole, folder, BitsAndBytesConfig(**arguments), kept)
    odd = [name for name, layer in linear_layers(model).items() if layer.weight.shape[-1] % _BLOCK]
    if odd:
        notes.append(
            f"{_BLOCK} does not divide the rows of {len(odd)} layers: on CPUs with AVX512-BF16 bitsandbytes runs these "
            "only after `support_avx512bf16_for_cpu = False` on each, as was done to measure them."
        )
    return notes


FORMATS = (Format("nf4", "4-bit weights (NF4)", write, precision="4bit", packages=("bitsandbytes",)),)
