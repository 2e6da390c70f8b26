"""int8 weights by torchao: symmetric, with a scale for each row of a linear layer; the rest stays as it is."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, TorchAoConfig

from rlhf.export.formats import Format
from rlhf.export.formats._quantised import write_quantised
from rlhf.models.quantization import unquantized_parts
from rlhf.publish.build import Finished


def write(model: PreTrainedModel, whole: Finished, folder: Path) -> list[str]:
    """Write the model with the linear layers of its backbone in int8."""
    from torchao.quantization import Int8WeightOnlyConfig

    kept = unquantized_parts(whole.task.model_class, model.config)
    quantization = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False), modules_to_not_convert=kept)
    return write_quantised(model, whole, folder, quantization, kept)


FORMATS = (Format("int8", "int8 weights", write, precision="int8", packages=("torchao",)),)
