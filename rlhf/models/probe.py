"""The probe of a model: a few inputs with the model's outputs, recorded so that a loaded model can be compared.

The output of a sequence is its log-probability for a policy that writes (nats/sequence), its logits for a classifier or
reward model, and the start and end logits of its first token for a span policy. An encoder-decoder is asked for the
log-probability of writing the sequence to itself, which takes both halves.
An image model is shown patterns that are made anew (`patterns`): its images may be gone when it is loaded.
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
from rlhf.models.quantization import is_quantized

SIZE = 4
_TOLERANCES = {"float32": (1e-3, 1e-4), "bfloat16": (0.1, 0.02), "float16": (0.05, 5e-3),
               "int8": (0.2, 0.02), "4bit": (2.0, 0.15)}  # fmt: skip
"""What rounding may change in an output, by type of the weights when the probe was made: absolute (nats or logits), and
as a share of the output. The larger of the two is allowed: the first for scores near 0, the second for the
log-probabilities of long sequences, whose rounding adds up."""
_NF4 = "nf4, "
_OTHER = "its base model is not the one it was trained on, or a file was changed"


@torch.no_grad()
def outputs(model: nn.Module, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Compute a model's outputs for each sequence by itself, so that no padding is involved.

    Args:
        model: A language model, causal or encoder-decoder, a sequence classifier or a question-answering model.
        sequences: Token ids.

    Returns:
        The outputs, sequence after sequence.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    forward = vars(model).get("_original_forward", model)  # without accelerate's autocast, which is not saved
    config: Any = getattr(model, "config", None)
    writes_to_input = bool(getattr(config, "is_encoder_decoder", False))
    values: list[float] = []
    for sequence in sequences:
        ids = torch.tensor([list(sequence)], device=device)
        targets = {"labels": ids} if writes_to_input else {}
        output = forward(input_ids=ids, attention_mask=torch.ones_like(ids), **targets)
        if hasattr(output, "start_logits"):
            values.extend([output.start_logits[0, 0].item(), output.end_logits[0, 0].item()])
            continue
        logits = output.logits.float()
        if logits.dim() == 3:
            first = 0 if writes_to_input else 1
            log_probs = logits[:, : ids.shape[1] - first].log_softmax(-1).gather(-1, ids[:, first:, None])
            values.append(log_probs.sum().item())
        else:
            values.extend(logits.flatten().tolist())
    model.train(training)
    return values


@torch.no_grad()
def image_outputs(model: nn.Module, shape: Sequence[int]) -> list[float]:
    """An image classifier's logits of the patterns of a shape, pattern after pattern."""
    training = model.training
    model.eval()
    weight = next(model.parameters())
    forward = vars(model).get("_original_forward", model)
    logits = forward(pixel_values=patterns(shape).to(weight.device, weight.dtype)).logits.float()
    model.train(training)
    return logits.flatten().tolist()


def patterns(shape: Sequence[int]) -> torch.Tensor:
    """`SIZE` different waves as images with values from -1 to 1, [SIZE, channels, height, width]."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.stack([(steps * (0.11 + 0.37 * number)).sin() for number in range(SIZE)]).view(SIZE, *shape).float()


def make(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    image: Sequence[int] | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Make the probe of a model: the first few sequences, their outputs and the type of the weights.

    Processes that share the weights of the model among them all call this, with the same sequences.

    Args:
        model: The model.
        sequences: Token ids.
        image: Channels, height and width of what an image model reads, which sees patterns of this shape instead.
        dtype: The type that it computes in, such as `bfloat16`; None takes that of its weights.

    Raises:
        UserError: An output is not finite.
    """
    chosen = [list(sequence) for sequence in sequences[:SIZE]]
    values = outputs(model, chosen) if image is None else image_outputs(model, image)
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"the trained model's outputs are not finite ({values}): the run has diverged; lower learning_rate"
        )
    shown = {"ids": chosen} if image is None else {"image": list(image)}
    return {**shown, "outputs": values, "dtype": dtype or type_of(model)}


def again(model: nn.Module, probe: dict[str, Any]) -> dict[str, Any]:
    """The probe of a model with the inputs of another probe."""
    values = image_outputs(model, probe["image"]) if "image" in probe else outputs(model, probe["ids"])
    return {**probe, "outputs": values, "dtype": type_of(model)}


def agrees(was: float, now: float, dtype: str) -> bool:
    """Whether an output of a probe is what it was, up to rounding.

    Args:
        was: As recorded (nats or logits).
        now: As computed now.
        dtype: Type of the weights when the probe was made, such as `float32` or `nf4, float32`.
    """
    absolute, relative = _TOLERANCES.get(dtype.removeprefix(_NF4), _TOLERANCES["bfloat16"])
    return math.isclose(was, now, rel_tol=relative, abs_tol=absolute)


def check(model: nn.Module, probe: dict[str, Any], name: str, cause: str = _OTHER) -> None:
    """Check that a loaded model gives the outputs that it gave when it was saved.

    Args:
        model: The model.
        probe: What `make` gave.
        name: What to call the model in a message.
        cause: What a difference would mean.

    Raises:
        UserError: An output differs; the message has both values, and the types of the weights if they differ.
    """
    values = again(model, probe)["outputs"]
    if len(values) != len(probe["outputs"]):
        raise UserError(f"{name}: loaded, the model has {len(values)} outputs; saved, it had {len(probe['outputs'])}")
    for was, now in zip(probe["outputs"], values, strict=True):
        if not agrees(was, now, probe["dtype"]):
            types = (probe["dtype"], type_of(model))
            if types[0] != types[1]:
                cause = f"its weights were {types[0]} and are {types[1]} now, or {cause}"
            raise UserError(
                f"{name}: loaded, the model scores its probe sequence {now:.4f}; saved, it scored {was:.4f}: {cause}"
            )


def check_head(folder: Path) -> None:
    """Check that a classifier's adapter holds the head that was trained with it, before it is loaded.

    Args:
        folder: The adapter's folder; a folder without a classifier's adapter passes.

    Raises:
        UserError: The head is missing, or all its weights are zero.
    """
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not (folder / ADAPTER_CONFIG).is_file() or not weights.is_file():
        return
    adapter = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if adapter.get("task_type") not in (TaskType.SEQ_CLS, TaskType.QUESTION_ANS):
        return
    with safe_open(weights, framework="pt") as file:
        heads = [name for name in file.keys() if ".lora_" not in name and name.endswith(".weight")]  # noqa: SIM118
        empty = [name for name in heads if not file.get_tensor(name).any()]
    if not heads:
        raise UserError(f"{weights}: the head of the model is not in it, so scores would be random; train it again")
    if empty:
        raise UserError(f"{weights}: {empty[0]} is all zero, so that every sequence scores the same; train it again")


def base_commit(source: Source) -> str | None:
    """The commit of a hub model that was last loaded here; None for a local folder.

    It is read from the client's cache, which every load updates. The hub could name a later commit at the end of a long
    training.
    """
    if Path(source.base).exists():
        return None
    try:
        return resolve_revision(source.base, revision=source.revision, local_files_only=True).resolved
    except (RevisionResolutionError, HFValidationError):
        return None


def check_commit(source: Source, lineage: Mapping[str, Any] | None, name: str) -> None:
    """Check that the hub still has, as an adapter's base model, the commit that the adapter was trained on.

    Args:
        source: The adapter's base.
        lineage: The manifest's, with the `commit` then; None where it has none.
        name: What to call the adapter in a message.

    Raises:
        UserError: The branch has moved; the message names both commits.
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


def type_of(model: nn.Module) -> str:
    """Type of a model's weights; of a base in 4 bits that and the type of the others, which all is computed in."""
    kind = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"{_NF4}{kind}" if is_quantized(model) else kind
