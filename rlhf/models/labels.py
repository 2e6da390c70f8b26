"""The classes of a classifier, read from its files and written beside an adapter, whose config has no room for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers import PreTrainedModel

from rlhf.models.load import Source, model_config
from rlhf.models.tasks import IMAGE_LABEL, LABEL
from rlhf.models.weights import check_files

LABELS_FILE = "labels.json"
_SEVERAL = "multi_label_classification"


class Classes(NamedTuple):
    """The classes that a model tells apart."""

    names: list[str]
    """By number; one for a reward model, and for a model without such a head."""
    several: bool = False
    """Whether several can be right at once."""

    def name(self, model: PreTrainedModel) -> None:
        """Write them into a model's config."""
        model.config.id2label = dict(enumerate(self.names))
        model.config.label2id = {name: number for number, name in enumerate(self.names)}
        config: Any = model.config
        config.problem_type = _SEVERAL if self.several else "single_label_classification"

    def write(self, folder: Path) -> None:
        """Write them beside an adapter."""
        text = json.dumps({"names": self.names, "several": self.several}, ensure_ascii=False)
        (folder / LABELS_FILE).write_text(text + "\n", encoding="utf-8")


def classes_named(model: Any) -> Classes:
    """The classes that stand in a model's config (`Classes.name`)."""
    config = model.config
    return Classes([config.id2label[number] for number in sorted(config.id2label)], config.problem_type == _SEVERAL)


def classes_of(source: Source) -> Classes:
    """The classes of a model's files."""
    config = model_config(source)
    if source.adapter is None:
        classifier = any(name.endswith((*LABEL.heads, *IMAGE_LABEL.heads)) for name in config.architectures or ())
        count = (config.num_labels or 1) if classifier else 1
    elif (source.adapter / LABELS_FILE).is_file():
        recorded = json.loads((source.adapter / LABELS_FILE).read_text(encoding="utf-8"))
        return Classes([str(name) for name in recorded["names"]], recorded["several"])
    else:
        count = adapter_labels(source.adapter)
    given = config.id2label or {}
    names = {int(number): name for number, name in given.items()} if len(given) == count else {}
    named = [str(names.get(number, f"LABEL_{number}")) for number in range(count)]
    return Classes(named, getattr(config, "problem_type", None) == _SEVERAL)


def adapter_labels(folder: Path) -> int:
    """Outputs of the head that is saved with an adapter: of its layers, the last one has the fewest."""
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        return 1
    check_files(str(folder))
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if ".lora_" not in name]  # noqa: SIM118
    return min((shape[0] for shape in shapes if len(shape) == 2), default=1)
