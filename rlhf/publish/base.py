"""What a published stage was trained on, where that was a base in 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.artifacts.open import OpenedModel
from rlhf.models.load import model_config
from rlhf.models.quantization import quantization_arguments, unquantized_parts
from rlhf.models.tasks import Task


def held_in_4_bits(opened: OpenedModel, task: Task) -> dict[str, Any] | None:
    """How the base of an adapter is held in 4 bits, as arguments of `BitsAndBytesConfig`; None where it is not.

    Args:
        opened: The stage.
        task: What the head computes that the adapter is loaded under.
    """
    if opened.settings.quantization is None:
        return None
    parts = unquantized_parts(task.model_class, model_config(opened.source))
    return quantization_arguments(opened.settings.dtype, parts)


def moved(opened: OpenedModel, written: Mapping[str, Any] | None) -> float | None:
    """By how much the probe's outputs change on average when an adapter moves from a base in 4 bits to the whole one.

    Args:
        opened: The stage.
        written: The probe of the whole base with the adapter merged.

    Returns:
        Nats a sequence, or logits; None for a stage whose base is not quantized.
    """
    recorded = opened.manifest.get("probe")
    if opened.settings.quantization is None or not recorded or not written:
        return None
    pairs = list(zip(recorded["outputs"], written["outputs"], strict=True))
    return sum(abs(was - now) for was, now in pairs) / len(pairs)
