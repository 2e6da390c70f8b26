"""The labels of a sequence classifier, read from its files."""

from __future__ import annotations

from pathlib import Path

from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

from rlhf.models.load import Source, model_config
from rlhf.models.weights import check_files


def adapter_labels(folder: Path) -> int:
    """Outputs of the head that is saved with an adapter: of its layers, the last one has the fewest."""
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        return 1
    check_files(str(folder))
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if ".lora_" not in name]  # noqa: SIM118
    return min((shape[0] for shape in shapes if len(shape) == 2), default=1)


def label_names(source: Source) -> list[str]:
    """Names of a classifier's labels, by number; one for a reward model, and for a model without such a head."""
    config = model_config(source)
    if source.adapter is not None:
        count = adapter_labels(source.adapter)
    else:
        classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
        count = (config.num_labels or 1) if classifier else 1
    given = config.id2label or {}
    names = {int(number): name for number, name in given.items()} if len(given) == count else {}
    return [str(names.get(number, f"LABEL_{number}")) for number in range(count)]
