"""4-bit weights by bitsandbytes: NF4 in blocks of 64, whose scales are quantised too; the rest stays as it is."""

from __future__ import annotations

from pathlib import Path

from transformers import BitsAndBytesConfig, PreTrainedModel

from rlhf.errors import UserError
from rlhf.export.formats import Format
from rlhf.export.formats._quantised import write_quantised
from rlhf.export.prune import linear_layers
from rlhf.models.quantization import quantization_arguments, unquantized_parts
from rlhf.publish.build import Finished

_BLOCK = 64
"""Weights that share a scale."""


def write(model: PreTrainedModel, whole: Finished, folder: Path) -> list[str]:
    """Write the model with the linear layers of its backbone in NF4.

    Raises:
        UserError: A layer has rows that no number of blocks fills. On CPUs bitsandbytes 0.50.2 reads these as other
            weights than it wrote, wherever this package has not mended it.
    """
    odd = [name for name, layer in linear_layers(model).items() if layer.weight.shape[-1] % _BLOCK]
    if odd:
        raise UserError(
            f"{whole.run_dir / whole.stage}: --format nf4: {_BLOCK} does not divide the rows of {len(odd)} layers "
            f"(such as {odd[0]}), and bitsandbytes reads those wrongly on CPUs; take int8 or gguf-q4_0"
        )
    kept = unquantized_parts(whole.task.model_class, model.config)
    arguments = quantization_arguments(whole.opened.settings.dtype, kept)
    return write_quantised(model, whole, folder, BitsAndBytesConfig(**arguments), kept)


FORMATS = (Format("nf4", "4-bit weights (NF4)", write, precision="4bit", packages=("bitsandbytes",)),)
