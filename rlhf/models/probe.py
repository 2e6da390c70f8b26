"""A few sequences and what a model made of them, kept with the model: whoever loads it can tell whether it is the same.

For a policy the output of a sequence is its log-probability (nats/sequence), for a classifier or reward model its
logits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf.errors import UserError

SIZE = 4
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
"""Relative difference allowed between the outputs when made and when read, by type of the weights."""


@torch.no_grad()
def outputs(model: nn.Module, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Score each sequence by itself, so that no padding is involved.

    Args:
        model: A causal language model or a sequence classifier.
        sequences: Token ids.

    Returns:
        One log-probability a sequence (nats), or its logits one after the other.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    values: list[float] = []
    for sequence in sequences:
        ids = torch.tensor([list(sequence)], device=device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        if logits.dim() == 3:
            log_probs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
            values.append(log_probs.sum().item())
        else:
            values.extend(logits.flatten().tolist())
    model.train(training)
    return values


def make(model: nn.Module, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The probe of a model: the first few sequences, their outputs and the type of the weights."""
    chosen = [list(sequence) for sequence in sequences[:SIZE]]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    values = outputs(model, chosen)
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"the trained model's outputs are not finite ({values}): the run has diverged; lower learning_rate"
        )
    return {"ids": chosen, "outputs": values, "dtype": dtype}


def check_folder(model: nn.Module, folder: Path) -> None:
    """The same of a model loaded from a stage's folder, by the probe in its contract, if it has one.

    Raises:
        UserError: As `check`.
    """
    contract = folder / "stage.json"
    stored = json.loads(contract.read_text(encoding="utf-8")).get("probe") if contract.is_file() else None
    if stored:
        check(model, stored, str(folder))


def check(model: nn.Module, probe: dict[str, Any], name: str) -> None:
    """Hold that a loaded model still gives what it gave when it was saved.

    Raises:
        UserError: It does not; the two values are named.
    """
    allowed = TOLERANCE.get(probe["dtype"], 0.1)
    for was, now in zip(probe["outputs"], outputs(model, probe["ids"]), strict=True):
        if not math.isclose(was, now, rel_tol=allowed, abs_tol=allowed):
            raise UserError(
                f"{name}: loaded, the model scores its probe sequence {now:.4f}; saved, it scored {was:.4f}: "
                "its base model is not the one it was trained on, or a file was changed"
            )
