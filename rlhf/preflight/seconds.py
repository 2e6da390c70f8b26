"""Seconds of a stage by arithmetic: the operations of its passes, over those that the machine does a second."""

from __future__ import annotations

from rlhf.preflight.arithmetic import Shape, forward_flops, passes
from rlhf.preflight.lengths import Row
from rlhf.preflight.machine import UTILISATION
from rlhf.preflight.measure import Measured
from rlhf.preflight.memory import Situation
from rlhf.preflight.models import Built
from rlhf.workload import Pass

_CPU = (0.25, 0.75)
"""Share of square products' operations a second that training reaches on a CPU: assumed."""
_SPREAD = 0.2
"""Least uncertainty of a time by measured steps, as a share: batches differ, and so does what else a machine does."""


def seconds_of(situation: Situation) -> tuple[float, float, float]:
    """Least, expected and most seconds of a stage's passes; loading and saving are not counted."""
    machine = situation.machine
    slow, fast = _CPU if machine.kind == "cpu" else UTILISATION
    flops = sum(pass_flops(situation, passing) for passing in situation.workload.passes) / machine.devices
    least, most = flops / (machine.flops * fast), flops / (machine.flops * slow)
    return least, (least * most) ** 0.5, most


def pass_flops(situation: Situation, passing: Pass) -> float:
    """Operations of all batches of a pass, over all devices."""
    rows = situation.rows[passing.name].rows
    if not passing.roles or not rows:
        return 0.0
    total = 0.0
    for role in passing.roles:
        built, held = situation.built[role], situation.held(role)
        shape, shares = shape_of(built), passing.shares and situation.folds(built)
        head = shape.head if passing.head != "score" and not held.scores else 0
        flops = sum(_row_flops(shape, head, row, passing, shares) for row in rows) / len(rows)
        factor = passes(held.adapter is not None) if passing.backward else 1.0
        factor += bool(passing.backward and situation.settings.get("gradient_checkpointing"))
        total += _count(situation, passing) * flops * factor
    return total


def _row_flops(shape: Shape, head: int, row: Row, passing: Pass, shares: bool) -> float:
    """Operations of a forward pass over a row, or over one completion of a prompt with its part of the prompt."""
    if passing.writes:
        length, prompts = row.folded + passing.writes, passing.samples if shares or passing.sampling else 1
        again = forward_flops(shape, row.folded) * (1 - 1 / prompts)  # what other completions of the prompt pay
        return forward_flops(shape, length) - again + 2.0 * head * passing.writes
    lengths = [row.folded] if shares else row.lengths
    return sum(forward_flops(shape, length) for length in lengths) + 2.0 * head * row.labelled


def shape_of(built: Built) -> Shape:
    """The numbers of a model that decide its operations."""
    return Shape(built.layers, built.hidden, built.numbers.matrices, built.numbers.head)


def seconds_by_steps(situation: Situation, measured: Measured) -> tuple[float, float, float]:
    """Least, expected and most seconds of a stage by two measured steps on this machine.

    A step takes as long as the measured ones for each of its tokens, and each rollout as long as the last one, but the
    first. Passes that were not measured take their operations over those that the measured steps did a second.

    Args:
        situation: The stage.
        measured: What its two steps took; there must be some.
    """
    training = next(passing for passing in situation.workload.passes if passing.backward)
    steps = max(1.0, _count(situation, training) / _step_rows(situation, training))
    times = [seconds * _share(situation, training, measured, number) for number, seconds in enumerate(measured.step)]
    step = sum(times) / len(times)
    rate = pass_flops(situation, training) / steps / step
    total = steps * step + measured.around
    if any(passing.sampling for passing in situation.workload.passes):
        total += measured.rollouts[0] + (_rollouts(situation, training) - 1) * measured.rollouts[-1]
    else:
        others = [passing for passing in situation.workload.passes if not passing.backward]
        total += sum(pass_flops(situation, passing) for passing in others) / rate / situation.machine.devices
    spread = max(_SPREAD, abs(times[-1] - times[0]) / (2 * step))
    return total * (1 - min(spread, 0.9)), total, total * (1 + spread)


def _share(situation: Situation, training: Pass, measured: Measured, number: int) -> float:
    """Tokens of an average step over those of a measured one; 1 where they are not known."""
    rows = situation.rows[training.name]
    if len(measured.tokens) != len(measured.step) or not measured.tokens[number] or not rows.measured:
        return 1.0
    mean = sum(sum(row.lengths) for row in rows.rows) / len(rows.rows)
    return _step_rows(situation, training) * mean / measured.tokens[number]


def _step_rows(situation: Situation, training: Pass) -> float:
    """Rows of an optimizer step."""
    steps = situation.settings.get("gradient_accumulation_steps") or 1
    return float(training.at_once * steps * situation.machine.devices)


def _count(situation: Situation, passing: Pass) -> float:
    """Rows that a pass takes in all."""
    return passing.rows if passing.rows is not None else passing.epochs * situation.rows[passing.name].count


def _rollouts(situation: Situation, training: Pass) -> float:
    """How often the policy samples."""
    sampling = next(passing for passing in situation.workload.passes if passing.sampling)
    size = _step_rows(situation, training) * situation.settings.get("num_mini_batches", 1)
    return max(1.0, _count(situation, sampling) / size)
