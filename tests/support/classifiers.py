"""Small reward models and classifiers on disk."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed


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
