"""A few sequences and what a model made of them, kept with the model: whoever loads it can tell whether it is the same.

For a policy the output of a sequence is its log-probability (nats/sequence), for a classifier or reward model its
logits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import resolve_revision
from huggingface_hub.errors import HFValidationError, RevisionResolutionError
from peft import TaskType
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn

from rlhf.errors import UserError
from rlhf.models.load import ADAPTER_CONFIG, Source

SIZE = 4
_TOLERANCES = {"float32": (1e-3, 1e-4), "bfloat16": (0.1, 0.02), "float16": (0.05, 5e-3)}
"""What rounding may change in an output, by type of the weights when the probe was made: absolute (nats or logits), and
as a share of the output. The larger of the two is allowed: the first for scores near 0, the second for the
log-probabilities of long sequences, whose rounding adds up."""
_OTHER = "its base model is not the one it was trained on, or a file was changed"


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
    forward = vars(model).get("_original_forward", model)  # accelerate's autocast belongs to training, not to the model
    values: list[float] = []
    for sequence in sequences:
        ids = torch.tensor([list(sequence)], device=device)
        logits = forward(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        if logits.dim() == 3:
            log_probs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
            values.append(log_probs.sum().item())
        else:
            values.extend(logits.flatten().tolist())
    model.train(training)
    return values


def make(model: nn.Module, sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The probe of a model: the first few sequences, their outputs and the type of the weights.

    Raises:
        UserError: An output is not finite.
    """
    chosen = [list(sequence) for sequence in sequences[:SIZE]]
    values = outputs(model, chosen)
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"the trained model's outputs are not finite ({values}): the run has diverged; lower learning_rate"
        )
    return {"ids": chosen, "outputs": values, "dtype": _dtype(model)}


def agrees(was: float, now: float, dtype: str) -> bool:
    """Whether an output of a probe is what it was, up to rounding.

    Args:
        was: As recorded (nats or logits).
        now: As computed now.
        dtype: Type of the weights when the probe was made, such as `float32`.
    """
    absolute, relative = _TOLERANCES.get(dtype, _TOLERANCES["bfloat16"])
    return math.isclose(was, now, rel_tol=relative, abs_tol=absolute)


def check(model: nn.Module, probe: dict[str, Any], name: str, cause: str = _OTHER) -> None:
    """Hold that a loaded model still gives what it gave when it was saved.

    Args:
        model: The model.
        probe: What `make` gave.
        name: What to call the model in a message.
        cause: What a difference would mean.

    Raises:
        UserError: It does not; the two values are named, and the types of the weights where they differ.
    """
    values = outputs(model, probe["ids"])
    if len(values) != len(probe["outputs"]):
        raise UserError(f"{name}: loaded, the model has {len(values)} outputs; saved, it had {len(probe['outputs'])}")
    for was, now in zip(probe["outputs"], values, strict=True):
        if not agrees(was, now, probe["dtype"]):
            types = (probe["dtype"], _dtype(model))
            if types[0] != types[1]:
                cause = f"its weights were {types[0]} and are {types[1]} now, or {cause}"
            raise UserError(
                f"{name}: loaded, the model scores its probe sequence {now:.4f}; saved, it scored {was:.4f}: {cause}"
            )


def check_head(folder: Path) -> None:
    """Hold that a classifier's adapter has the head that was trained with it, before it is loaded.

    Args:
        folder: The adapter's folder; one without a classifier's adapter has nothing to lose.

    Raises:
        UserError: It is missing, or has no weight but zero.
    """
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not (folder / ADAPTER_CONFIG).is_file() or not weights.is_file():
        return
    adapter = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if adapter.get("task_type") != TaskType.SEQ_CLS:
        return
    with safe_open(weights, framework="pt") as file:
        heads = [name for name in file.keys() if ".lora_" not in name and name.endswith(".weight")]  # noqa: SIM118
        empty = [name for name in heads if not file.get_tensor(name).any()]
    if not heads:
        raise UserError(f"{weights}: the head of the model is not in it, so scores would be random; train it again")
    if empty:
        raise UserError(f"{weights}: {empty[0]} is all zero, so that every sequence scores the same; train it again")


def base_commit(source: Source) -> str | None:
    """The commit at which a base model of the hub was last loaded here, by which a moved branch can be told.

    Read from the client's cache, which every load brings up to date: asked of the hub at the end of a long training, it
    could be another one. None of a local folder.
    """
    if Path(source.base).exists():
        return None
    try:
        return resolve_revision(source.base, revision=source.revision, local_files_only=True).resolved
    except (RevisionResolutionError, HFValidationError):
        return None


def check_commit(source: Source, lineage: Mapping[str, Any] | None, name: str) -> None:
    """Hold that an adapter's base model on the hub is still the commit it was trained on.

    Args:
        source: The adapter's base.
        lineage: The manifest's, with the `commit` then; None where it has none.
        name: What to call the adapter in a message.

    Raises:
        UserError: The branch has moved; both commits are named.
    """
    was = (lineage or {}).get("commit")
    if was is None or source.adapter is None:
        return
    now = base_commit(source)
    if now is not None and now != was:
        raise UserError(
            f"{name}: its base model {source.base} was at commit {was} when the stage ran and is at {now} now; "
            "name the one you want with model.revision, and run the stage again"
        )


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
