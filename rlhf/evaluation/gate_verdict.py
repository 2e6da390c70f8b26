"""Whether a reward model may be maximised, and what to look at where it may not. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlhf.evaluation.stats import wilson_interval
from rlhf.workflow import LEARNED

BATCH_TOLERANCE = 0.05
"""Largest change of a score by padding or company, in standard deviations: rounding in bf16 stays below."""
_FOLLOWS_LENGTH = 0.9
"""Share of the pairs in which a model prefers the longer (or shorter) reply, above which it measures little else."""
_FAR = 2.0
"""Standard deviations between the policy's replies and the pairs from which on the model judges what it never saw."""
_EOS_MATTERS = 0.5
_MISCALIBRATED = 0.1
_WITHIN_REACH = 4
"""Times as many held-out pairs as there are: where more would be needed, the model is rather no better than chance."""
_MOST_PAIRS = 1_000_000


def verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    """Decide on one reward model.

    It passes if the lower end of its accuracy's interval lies above both baselines, the ruler's accuracy and chance,
    its scores do not depend on padding or on what else is in the batch, and it gives one to every reply.

    Args:
        found: What `gate.examine`, `gate.invariance` and `gate.distribution` measured.

    Returns:
        `passed`; `baseline`, what had to be beaten; `reasons`, why it does not pass; `advice`, what to look at next;
        `notes`, what does not stop the run.
    """
    baseline = max(0.5, found["length_baseline"])
    low, high = found["accuracy_ci"]
    reasons, advice = [], []
    if found["unscored"]:
        reasons.append(f"it gives no score to {found['unscored']:,} of {2 * found['n']:,} replies")
        advice.append("the pairs without a score come first in gate/pairs.jsonl; fp16 overflows where bf16 does not")
    if low <= baseline:
        ruler = "the longer or the shorter reply" if found["length_baseline"] >= 0.5 else "chance"
        reasons.append(
            f"it ranks {_percent(found['accuracy'])} [{_percent(low)}, {_percent(high)}] of {_pairs(found)} rightly, "
            f"which is not shown to be more than {_percent(baseline)} ({ruler})"
        )
        advice += _advice(found, baseline)
    batch = found["invariance"]["batch"]
    if batch is None or math.isnan(batch):
        reasons.append("whether a score moves with what else is in the batch cannot be told: some scores are missing")
    elif batch > BATCH_TOLERANCE:
        reasons.append(f"a score moves by up to {batch:.2f} standard deviations with what else is in the batch")
        advice.append("padding reaches the score: check the model's pad token and padding side")
    return {"passed": not reasons, "baseline": baseline, "reasons": reasons, "advice": advice, "notes": _notes(found)}


def unproven(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The reward models that are not shown to be right more often than chance and length, by name, and why.

    Args:
        stages: Metrics of a run's stages. What the gate found of a model counts before what its own stage did.
    """
    doubts = {}
    for name in LEARNED:
        found = stages.get(name, {})
        baseline = max(0.5, found.get("length_baseline") or 0.0)
        if found.get("accuracy_ci") is not None and found["accuracy_ci"][0] <= baseline:
            low, high = map(_percent, found["accuracy_ci"])
            doubts[name] = f"right in {_percent(found['accuracy'])} [{low}, {high}] of held-out pairs, where " + (
                "chance is in 50%" if baseline == 0.5 else f"length alone is in {_percent(baseline)}"
            )
    for name, found in stages.get("gate", {}).get("models", {}).items():
        doubts.pop(name, None)
        if not found["passed"]:
            doubts[name] = "it did not pass the gate"
    return doubts


def pairs_needed(accuracy: float, baseline: float) -> int | None:
    """Fewest held-out pairs at which this accuracy's 95% Wilson interval lies above the baseline; None if none do."""
    if accuracy <= baseline:
        return None
    few, many = 1, 2
    while wilson_interval(accuracy * many, many)[0] <= baseline:
        few, many = many, 2 * many
        if many > _MOST_PAIRS:
            return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if wilson_interval(accuracy * middle, middle)[0] <= baseline else (few, middle)
    return many


def _advice(found: Mapping[str, Any], baseline: float) -> list[str]:
    longer = found["prefers_longer"]
    if longer is not None and max(longer, 1 - longer) >= _FOLLOWS_LENGTH:
        which = "longer" if longer > 0.5 else "shorter"
        return [
            f"it prefers the {which} reply in {_percent(max(longer, 1 - longer))} of the pairs: that is what it has "
            "learned; look at `rlhf check` for the pairs' length bias, and add pairs of equal length"
        ]
    needed = _needed_of_such(found, baseline)
    if needed is not None and found["n"] < needed <= _WITHIN_REACH * found["n"]:
        return [
            f"at this accuracy about {_rounded(needed)} held-out pairs would show it: raise data.preferences.holdout, "
            "or train on more pairs"
        ]
    return [
        "`rlhf check` for contradictory or mislabelled pairs (are chosen and rejected the right way round?)",
        "the most wrong pairs first in gate/pairs.jsonl",
        "the reward stage's loss: if it did not fall, a higher learning rate or more epochs; if it fell on training "
        "pairs alone, fewer epochs or more pairs",
    ]


def _needed_of_such(found: Mapping[str, Any], baseline: float) -> int | None:
    """`pairs_needed`, where pairs share prompts as often as these do."""
    independent = pairs_needed(found["accuracy"], baseline)
    if independent is None or not found["n_effective"]:
        return None
    return math.ceil(independent * found["n"] / found["n_effective"])


def _notes(found: Mapping[str, Any]) -> list[str]:
    notes = []
    if found["ece"] is not None and found["ece"] > _MISCALIBRATED:
        notes.append(f"its confidence is off by {_percent(found['ece'])} on average (calibration)")
    eos = found["invariance"]["eos"]
    if eos is not None and eos > _EOS_MATTERS:
        notes.append(f"a second end token moves its score by {eos:.2f} standard deviations")
    scores = found["scores"]
    if {"chosen", "rejected", "policy"} <= scores.keys():  # without one that is finite, a set is left out
        pairs = (scores["chosen"]["mean"] + scores["rejected"]["mean"]) / 2
        spread = math.hypot(scores["chosen"]["std"], scores["rejected"]["std"]) / math.sqrt(2) or 1.0
        far = abs(scores["policy"]["mean"] - pairs) / spread
        if far > _FAR:
            notes.append(
                f"the policy's replies score {far:.1f} standard deviations from the pairs it was trained on: it judges "
                "what it has not seen"
            )
    return notes


def _pairs(found: Mapping[str, Any]) -> str:
    prompts = "" if found["prompts"] == found["n"] else f" ({found['prompts']:,} prompts)"
    return f"{found['n']:,} held-out pairs{prompts}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _rounded(number: int) -> str:
    """To two digits, upwards: it is an estimate."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / unit) * unit:,}"
