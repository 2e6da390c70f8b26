"""Bytes of a device, by part, in each phase of a stage; the phase with the most decides whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rlhf.prefix_sharing.cost_model import Cost
from rlhf.prefix_sharing.support import why_not
from rlhf.preflight.arithmetic import ADAM, FP32
from rlhf.preflight.batches import Batch, Rectangle, heaviest, laid_out
from rlhf.preflight.lengths import Row, Rows
from rlhf.preflight.machine import Machine
from rlhf.preflight.models import Built
from rlhf.workload import Held, Pass, Workload

_PROGRAM = {"cpu": 0.5e9, "gpu": 0.6e9}
"""Bytes of Python with its libraries on a CPU, of CUDA's context and the kernels on a GPU."""
_TRAINER = {"cpu": 0.12e9, "gpu": 0.0}
"""Bytes of the libraries that only training imports."""
_HOLES = {"adapter": 0.8, "whole": 0.2}
"""Bytes that glibc's heap loses for each byte of activations on a CPU: what is freed leaves holes that tensors of the
same size do not fit. Layers with an adapter make several temporary tensors for each that is kept. Measured; with
MALLOC_MMAP_THRESHOLD_=131072 there are none, and a step takes 1.8 times as long."""
_OPTIMIZERS = {
    "8bit": 2.0, "adafactor": 0.05, "sgd": 0.0, "lion": 4.0, "adagrad": 4.0, "rmsprop": 4.0, "adam": float(ADAM),
}  # fmt: skip
"""Bytes that an optimizer keeps for a float32 number, by a part of its name; the first that fits counts."""
_TILE = {"cpu": 256, "gpu": 4096}
_TILE_WIDTH = 32768
"""Positions and tokens of the vocabulary whose logits the fused head of TRL holds at a time."""
_TILE_COPIES = {"cpu": 5, "gpu": 1}
"""Tensors of the size of a tile, in float32 on a CPU."""
_DRAWN = 32
"""Bytes of a logit where a token is drawn: logits, log-probabilities and probabilities in float32, probabilities and
their sums in float64."""
Phases = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Situation:
    """A stage with its models built and its rows known."""

    workload: Workload
    built: Mapping[str, Built]
    """By role; roles on the weights of the first model have a model of the same structure."""
    rows: Mapping[str, Rows]
    """By name of the pass."""
    settings: Mapping[str, Any]
    machine: Machine
    fold: bool
    traces: dict[Any, Any] = field(default_factory=dict)

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that products are computed in, where it is not that of the weights."""
        wanted = self.settings.get("bf16")
        on = (self.machine.kind == "gpu") if wanted is None else bool(wanted)
        return torch.bfloat16 if on else None

    def folds(self, built: Built) -> bool:
        """Whether what sequences share is computed once, and rows of like length together."""
        return self.fold and why_not(built.model.base_model, longest=0) is None

    def held(self, role: str) -> Held:
        """The model of a role."""
        return next(model for model in self.workload.models if model.role == role)


def phases(situation: Situation) -> Phases:
    """The parts of each phase, in bytes of one device."""
    lasting = _lasting(situation)
    trained: dict[str, float] = {name: lasting.pop(name) for name in ("gradients", "optimizer") if name in lasting}
    result = {"loading": {**lasting, **_loading(situation)}}
    accumulated = int(situation.settings.get("gradient_accumulation_steps") or 1) > 1
    for passing in situation.workload.passes:
        if not passing.roles or not situation.rows[passing.name].rows:
            continue
        free = situation.machine.memory - sum(lasting.values())
        parts = _sampling(situation, passing, free) if passing.sampling else _computing(situation, passing)
        if passing.backward:
            held = trained if accumulated else {"optimizer": trained.get("optimizer", 0.0)}
            result[passing.name] = {**lasting, **held, **parts}
            result["optimizer step"] = {**lasting, **trained}
        else:
            result[passing.name] = {**lasting, "optimizer": trained.get("optimizer", 0.0), **parts}
    if situation.workload.saves:
        result["saving"] = {**lasting, "optimizer": trained.get("optimizer", 0.0), **_saving(situation)}
    return {name: {part: size for part, size in parts.items() if size} for name, parts in result.items()}


def _lasting(situation: Situation) -> dict[str, float]:
    """What a stage holds throughout, and what its training adds."""
    machine, trains = situation.machine, any(model.trained for model in situation.workload.models)
    program = _PROGRAM[machine.kind] + (_TRAINER[machine.kind] if trains else 0.0)
    weights = adapters = gradients = optimizer = gathered = 0.0
    shares = machine.devices if machine.sharded else 1
    divided = machine.devices if machine.devices > 1 and machine.engine != "ddp" else 1
    per_number = optimizer_bytes(str(situation.settings.get("optim", "adamw_torch")))
    for model in situation.workload.models:
        built = situation.built[model.role]
        numbers = built.numbers
        if model.base is not None:
            weights += numbers.base_bytes / shares
            if machine.sharded:
                gathered = max(gathered, 2.0 * numbers.layer_bytes + numbers.ends_bytes)
        if model.adapter is not None:
            adapters += numbers.adapter_bytes
        if model.trained:
            own = 1 if model.adapter is not None else divided
            gradients += numbers.trained_bytes / own
            optimizer += per_number / FP32 * numbers.trained_bytes / own
    parts = {"program": program, "weights": weights, "adapters": adapters, "gathered layers": gathered}
    return parts | {"gradients": gradients, "optimizer": optimizer}


def optimizer_bytes(name: str) -> float:
    """Bytes that an optimizer keeps for a float32 number, by its name in `optim`."""
    return next((size for part, size in _OPTIMIZERS.items() if part in name), float(ADAM))


def _loading(situation: Situation) -> dict[str, float]:
    """On a CPU the pages of the file that is read, beside the weights that they are copied to."""
    if situation.machine.kind != "cpu":
        return {}
    largest = max(situation.built[model.role].numbers.base_bytes for model in situation.workload.models)
    return {"files": float(largest)}


def _saving(situation: Situation) -> dict[str, float]:
    """What was saved is loaded again, beside the trained model: on a CPU from pages of its file."""
    first = situation.built[situation.workload.models[0].role].numbers
    return {"files": 2.0 * first.base_bytes} if situation.machine.kind == "cpu" else {}


def _computing(situation: Situation, passing: Pass) -> dict[str, float]:
    """Activations and logits of the role that holds most."""
    parts = [_of_role(situation, passing, role) for role in passing.roles]
    return max(parts, key=lambda part: sum(part.values()))


def _of_role(situation: Situation, passing: Pass, role: str) -> dict[str, float]:
    built, machine = situation.built[role], situation.machine
    batch = batch_of(situation, passing, built)
    checkpoint = bool(situation.settings.get("gradient_checkpointing")) and passing.backward
    activations = 0.0
    for rectangle in batch.rectangles:
        kept = traced(situation, built, rectangle, passing.backward, checkpoint)
        activations = activations + kept if passing.backward else max(activations, kept)
    head = passing.head if not situation.held(role).scores else "score"
    logits = 0.0
    if head == "tiled" and built.numbers.head:
        tile = min(_TILE[machine.kind], batch.labelled) * min(_TILE_WIDTH, built.vocabulary)
        logits = float(tile * FP32 * _TILE_COPIES[machine.kind] + 2 * FP32 * batch.labelled * built.hidden)
    elif head == "whole" and built.numbers.head and batch.labelled:
        logits = float(_whole_head(situation, built, batch.labelled, passing.backward))
    kind = "whole" if situation.held(role).adapter is None else "adapter"
    holes = activations * _HOLES[kind] if machine.kind == "cpu" and passing.backward else 0.0
    return {"activations": activations, "logits": logits, "holes in the heap": holes}


def _whole_head(situation: Situation, built: Built, positions: int, backward: bool) -> int:
    key = (id(built), positions, backward, situation.autocast, "head")
    if key not in situation.traces:
        situation.traces[key] = built.kept_by_head(positions, situation.autocast, backward).peak
    return int(situation.traces[key])


def traced(situation: Situation, built: Built, rectangle: Rectangle, backward: bool, checkpoint: bool) -> float:
    """Bytes that a rectangle keeps for the backward pass; without one, the most that it holds at a time.

    One row is traced, since rows add up.
    """
    length = rectangle.length
    if not rectangle.shared and built.context is not None:
        length = min(length, built.context)  # assumed rows may be longer than the model reads
    key = (id(built), length, rectangle.shared, backward, checkpoint, situation.autocast)
    if key not in situation.traces:
        kept = built.kept(
            rows=1, length=length, mask=rectangle.shared, autocast=situation.autocast, backward=backward,
            checkpoint=checkpoint,
        )  # fmt: skip
        situation.traces[key] = kept
    kept = situation.traces[key]
    most = max(kept.forward_peak, kept.peak - built.numbers.trained_bytes) if backward else kept.peak
    return float(most * rectangle.rows)


def batch_of(situation: Situation, passing: Pass, built: Built) -> Batch:
    """The heaviest batch of a pass."""
    foldable = situation.folds(built)
    cuts = foldable and not passing.writes  # a rollout's sequences are packed as one rectangle
    cost = Cost.of(built.model.base_model, _DEVICE[situation.machine.kind]) if cuts else None
    rows, at_once = situation.rows[passing.name].rows, passing.at_once
    if passing.writes:
        samples = min(passing.samples, at_once) if passing.backward else passing.samples
        rows = [Row(row.folded, (passing.writes,) * samples, passing.writes * samples) for row in rows]
        at_once = max(1, at_once // samples)
    together = int(situation.settings.get("gradient_accumulation_steps") or 1) if passing.backward else 1

    def layout(chosen: Sequence[Row]) -> Batch:
        return laid_out(chosen, cost, foldable and passing.shares, passing.backward)

    if not passing.backward:  # sorted by length, or drawn anew each time: the longest come together
        return layout(sorted(rows, key=lambda row: -row.folded)[:at_once])
    return heaviest(rows, at_once, together, layout, passing.sorted and foldable)


_DEVICE = {"cpu": "cpu", "gpu": "cuda"}


def _sampling(situation: Situation, passing: Pass, free: float) -> dict[str, float]:
    """The cache of the completions that are written at once, the adapter merged, and sharded weights gathered."""
    (role,) = passing.roles
    built, machine = situation.built[role], situation.machine
    if situation.settings.get("sampler") == "vllm":
        started = situation.settings.get("vllm_python") is not None and machine.kind == "gpu"
        return {"vllm": machine.memory * float(situation.settings["vllm_memory"]) if started else 0.0}
    size = torch.finfo(situation.autocast or built.model.dtype).bits // 8
    longest = max(row.folded for row in situation.rows[passing.name].rows)
    prompts = max(1, passing.at_once // passing.samples)
    cache = built.cache * size * (passing.at_once * (longest + passing.writes) + prompts * longest)
    held, plain = situation.held(role), built.model.dtype == torch.float32 and not machine.sharded
    merges = plain and held.adapter is not None and (held.base is None or held.base.quantization is None)
    gathers = situation.settings.get("gather_for_rollouts", False)
    if gathers is None:  # as training decides, by the free memory
        gathers = built.numbers.base_bytes <= free / 2
    return {
        "gathered weights": float(built.numbers.base_bytes if machine.sharded and gathers else 0.0),
        "merged weights": float(built.numbers.merged_bytes if merges else 0.0),
        "cache": float(cache),
        "logits": float(_DRAWN * passing.at_once * built.vocabulary),
    }
