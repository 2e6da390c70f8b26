"""Models for tests that must not pass by chance."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def strong(folder: Path, attention: str = "sdpa", factor: float = 12.0) -> PreTrainedModel:
    """A saved tiny model with larger weights, in evaluation mode."""
    return strengthened(AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval(), factor)


@torch.no_grad()
def strengthened(model: PreTrainedModel, factor: float = 12.0) -> PreTrainedModel:
    """The same model, its matrices multiplied.

    Freshly drawn ones are so small that each token's distribution is nearly uniform whatever came before; here a wrong
    mask or a wrong position changes log-probabilities by whole nats.
    """
    for weight in {id(one): one for one in model.parameters() if one.dim() > 1}.values():
        weight.mul_(factor)
    return model
