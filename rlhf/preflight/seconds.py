"""Seconds of a stage by arithmetic: the operations of its passes, over those that the machine does a second."""

from __future__ import annotations

from rlhf.preflight.arithmetic import Shape, forward_flops, passes
from rlhf.preflight.machine import UTILISATION
from rlhf.preflight.memory import Situation
from rlhf.preflight.models import Built
from rlhf.workload import Pass

_CPU = (0.25, 0.75)
"""Share of square products' operations a second that training reaches on a CPU: assumed."""


def seconds_of(situation: Situation) -> tuple[float, float, float]:
    """Least, expected and most seconds of a stage's passes; loading and saving are not counted."""
    machine = situation.machine
    slow, fast = _CPU if machine.kind == "cpu" else UTILISATION
    flops = sum(pass_flops(situation, passing) for passing in situation.workload.passes) / machine.devices
    least, most = flops / (machine.flops * fast), flops / (machine.flops * slow)
    return least, (least * most) ** 0.5, most


def pass_flops(situation: Situation, passing: Pass) -> float:
    """Operations of all batches of a pass, over all devices."""
    rows = situation.rows[passing.name]
    if not passing.roles or not rows.rows:
        return 0.0
    count = passing.rows if passing.rows is not None else passing.epochs * rows.count
    total = 0.0
    for role in passing.roles:
        built, held = situation.built[role], situation.held(role)
        shape, heads = shape_of(built), not held.scores and passing.head != "score"
        mean = 0.0
        for row in rows.rows:
            lengths, labelled = (row.lengths, row.labelled) if not passing.writes else ([row.folded], 0)
            flops = sum(forward_flops(shape, length + passing.writes, 0) for length in lengths)
            labelled = passing.writes if passing.writes else labelled
            mean += (flops + (2.0 * shape.head * labelled if heads else 0.0)) / len(rows.rows)
        factor = passes(held.adapter is not None) if passing.backward else 1.0
        if passing.backward and situation.settings.get("gradient_checkpointing"):
            factor += 1.0
        total += count * mean * factor
    return total


def shape_of(built: Built) -> Shape:
    """The numbers of a model that decide its operations."""
    return Shape(built.layers, built.hidden, built.numbers.matrices, built.numbers.head)
