"""Whole weights as safetensors, the adapter merged: what plain transformers loads."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from rlhf.export.formats import Format
from rlhf.publish.build import Finished


def write(model: PreTrainedModel, whole: Finished, folder: Path) -> list[str]:
    """Write the model as it is."""
    model.save_pretrained(folder)
    return []


FORMATS = (Format("merged", "whole weights", write),)
