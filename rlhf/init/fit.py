"""Cuts the steps of each stage so that they fit into the memory of the machine, and says how long they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from rlhf.config.project import ProjectConfig
from rlhf.init.draft import EVALUATE, Batch
from rlhf.preflight import Machine, Models, RowLengths, StageEstimate, estimate, estimate_seconds
from rlhf.preflight.command import duration

SHARE = 0.8
"""Share of the memory that a stage may take: estimates are not exact, and other programs run."""
_UNKNOWN = 4
"""Rows at once where nothing is known of the model."""
_CHECKPOINTED = 8
"""Rows at once to begin with where activations are computed again."""
_SAMPLED, _HELD_OUT = 64, 16
"""Usual numbers of replies sampled, and of held-out rows computed, at once."""


def fitted(
    batches: Mapping[str, Batch],
    machine: Machine,
    project_of: Callable[[Mapping[str, Batch]], ProjectConfig],
    models: Models | None = None,
) -> dict[str, Batch]:
    """The batches with the largest power of two that fits, activations kept where that is possible.

    The rows of a step stay what they are: fewer at once are accumulated.

    Args:
        batches: What each stage, and the comparison, would do with memory enough.
        machine: Where it runs.
        project_of: The project with other batches.
        models: Takes up the models that are built and traced for it.
    """
    models = models or Models()
    chosen, memory = dict(batches), machine.memory
    boundless = replace(machine, memory=math.inf)  # nothing is looked for that would fit: that is done here
    while True:
        project = _sampling(project_of(chosen), chosen)
        try:
            estimates = estimate(project, boundless, models=models)
        except Exception:  # no config of the model here, or an architecture's own code fails in its own way
            return {name: batch if name == EVALUATE else _unknown(batch) for name, batch in chosen.items()}
        smaller: dict[str, Batch] = {}
        for stage in estimates:
            name = stage.stage if stage.stage in chosen else EVALUATE  # the gate samples as the comparison does
            if name in chosen and stage.bytes > SHARE * memory:
                less = _smaller(name, chosen[name], stage.phase)
                smaller |= {} if less is None else {name: less}
        if not smaller:
            by_stage = {stage.stage: stage for stage in estimates}
            return {name: _explained(batch, by_stage.get(name), memory) for name, batch in chosen.items()}
        chosen |= smaller


def timed(
    batches: Mapping[str, Batch],
    project: ProjectConfig,
    machine: Machine,
    lengths: Mapping[str, RowLengths],
    models: Models | None = None,
) -> dict[str, Batch]:
    """The batches, with the time that their stages take; without it where nothing is known of the model.

    Args:
        batches: How each stage cuts its steps.
        project: The project with these.
        machine: Where it runs.
        lengths: Of each stage, those of its rows.
        models: Models that were built for `fitted`.
    """
    try:
        seconds = estimate_seconds(project, machine, lengths, models)
    except Exception:  # no config of the model here, or an architecture's own code fails in its own way
        return dict(batches)
    times = {name: f"; about {duration(least_to_most)} by arithmetic" for name, least_to_most in seconds.items()}
    return {name: replace(batch, time=times.get(name, "")) for name, batch in batches.items()}


def _sampling(project: ProjectConfig, batches: Mapping[str, Batch]) -> ProjectConfig:
    """The project, without its comparison where that samples nothing."""
    return project if EVALUATE in batches else replace(project, evaluate=replace(project.evaluate, enabled=False))


def _smaller(name: str, batch: Batch, phase: str) -> Batch | None:
    """A batch that takes less memory in a phase; None where none does."""
    if name == EVALUATE:
        return replace(batch, at_once=batch.at_once // 2) if batch.at_once > 1 else None
    if phase == "training":
        if batch.at_once > 1:
            return replace(batch, at_once=batch.at_once // 2)
        if batch.checkpointing:
            return None
        return replace(batch, at_once=min(batch.rows, _CHECKPOINTED), checkpointing=True)
    if phase == "sampling":
        less = (batch.sampling or _SAMPLED) // 2
        return replace(batch, sampling=less) if less else None
    if phase in ("evaluation", "measuring", "scoring"):
        less = (batch.evaluating or _HELD_OUT) // 2
        return replace(batch, evaluating=less) if less else None
    return None


def _explained(batch: Batch, estimated: StageEstimate | None, memory: float) -> Batch:
    """A batch that says how much of the memory its stage takes."""
    if estimated is None:
        return batch
    part = f"{_gigabytes(estimated.bytes)} of {_gigabytes(memory)} at its peak"
    if estimated.bytes > memory:
        return replace(batch, why=f"does not fit even so: {part}; take a smaller model or model.quantization: nf4")
    close = "" if estimated.bytes <= SHARE * memory else ", which is close"
    return replace(batch, why=f"computed at once: {part}{close}")


def _unknown(batch: Batch) -> Batch:
    """A small batch for a model of which nothing is known."""
    why = "rows computed at once; rlhf check tells the memory once the model is here"
    return replace(batch, at_once=min(batch.at_once, _UNKNOWN), why=why)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count < 10e9 else f"{count / 1e9:.0f} GB"
