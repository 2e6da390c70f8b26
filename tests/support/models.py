"""Small models, saved or with weights so large that a test cannot pass by chance."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    set_seed,
)


def strong(folder: Path, attention: str = "sdpa", factor: float = 12.0) -> PreTrainedModel:
    """A saved tiny model with larger weights, in evaluation mode."""
    return strengthened(AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval(), factor)


@torch.no_grad()
def strengthened(model: PreTrainedModel, factor: float = 12.0) -> PreTrainedModel:
    """The same model with its matrices multiplied by a factor.

    Freshly drawn matrices are so small that every token's distribution is nearly uniform whatever came before. With
    larger ones a wrong mask or position changes log-probabilities by whole nats.
    """
    for weight in {id(matrix): matrix for matrix in model.parameters() if matrix.dim() > 1}.values():
        weight.mul_(factor)
    return model


def save_classifier(base: Path, folder: Path, names: tuple[str, ...], seed: int = 0, **config: str) -> Path:
    """A sequence classifier with these labels and a random head, saved with its tokenizer."""
    set_seed(seed)
    labels, numbers = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(names),
        id2label=labels,
        label2id=numbers,
        **config,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def untied(folder: Path, base: Path) -> Path:
    """A copy of a model whose head is a matrix of its own."""
    model = AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder / "untied")
    assert "lm_head.weight" in load_file(folder / "untied/model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "untied" / name).write_bytes((base / name).read_bytes())
    return folder / "untied"
