"""Whether a reward model may be maximised, and what to look at where it may not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from rlhf import processes
from rlhf.data.records import Text
from rlhf.evaluation.formatting import percent
from rlhf.evaluation.reward_model import (
    Distribution,
    Invariance,
    PairMeasures,
    Pairs,
    distribution,
    examine,
    invariance,
    margins,
    score_pairs,
)
from rlhf.evaluation.shares import by_all
from rlhf.evaluation.stats import Floats, wilson_interval
from rlhf.rewards import RewardFunction

TRIED = 64
"""Prompts that the policy completes, and pairs on which invariance is tried."""
BATCH_TOLERANCE = 0.05
"""Largest change of a score by padding or by the other rows of a batch, in standard deviations: rounding in bf16 stays
below."""
_FOLLOWS_LENGTH = 0.9
"""Share of the pairs in which a model prefers the longer (or the shorter) side, above which it measures little else."""
_FAR = 2.0
"""Standard deviations between the policy's completions and the pairs above which the model judges what it never saw."""
_EOS_MATTERS = 0.5
_MISCALIBRATED = 0.1
_WITHIN_REACH = 4
"""Times as many held-out pairs as there are: where more would be needed, the model is rather no better than chance."""
_MOST_PAIRS = 1_000_000


class Measures(PairMeasures):
    """Everything that was measured of a reward model; what `verdict` decides by."""

    invariance: Invariance
    scores: Distribution


class Decision(TypedDict):
    """Whether a reward model may be maximised."""

    passed: bool
    """Whether it may."""
    baseline: float
    """What the lower end of `accuracy_ci` has to beat: the larger of chance and the length baseline."""
    reasons: list[str]
    """Why it does not pass."""
    advice: list[str]
    """What to look at next."""
    notes: list[str]
    """What does not stop the run."""


class GateModel(Measures, Decision):
    """One reward model at the gate; an entry of the gate's `models`."""


class GateResult(TypedDict):
    """The metrics of the gate stage."""

    passed: bool
    """Whether every reward model passed."""
    models: dict[str, GateModel]
    """Each reward model that training would maximise, by name."""
    policy: str
    """The policy whose completions were scored beside the pairs."""
    gates: str
    """The stage that may run only if this one passed."""


class Remark(NamedTuple):
    """Something to be said of a reward model."""

    id: str
    """What kind of remark it is."""
    text: str


def measure(
    judge: RewardFunction, pairs: Pairs, prompts: Sequence[Text], completions: Sequence[Text]
) -> tuple[Measures, Floats]:
    """Measure a reward model; several processes share its pairs and completions.

    Args:
        judge: The reward model, loaded by every process.
        pairs: Held-out pairs.
        prompts: Prompts.
        completions: One of the policy that training starts from to each prompt, scored beside the pairs.

    Returns:
        What was measured, and the margin of each pair.
    """
    ask = by_all(judge)
    scores_M2 = score_pairs(ask, pairs.records)
    known = scores_M2[np.isfinite(scores_M2)]
    spread = float(known.std()) if len(known) else 0.0
    policy_N = np.array(ask(prompts, completions), dtype=float)
    measures = Measures(
        # in batches as on one process
        invariance=processes.from_main(lambda: invariance(judge, pairs.records[:TRIED], spread)),
        scores=distribution({"chosen": scores_M2[:, 0], "rejected": scores_M2[:, 1], "policy": policy_N}),
        **examine(scores_M2, pairs),
    )
    return measures, margins(scores_M2)


def verdict(measures: Measures) -> Decision:
    """Decide on one reward model.

    It passes if the lower end of its accuracy's interval lies above both baselines, the length baseline's accuracy and
    chance, its scores do not depend on padding or on what else is in the batch, and it gives one to every completion.
    """
    failures = find_failures(measures)
    return Decision(
        passed=not failures,
        baseline=_baseline(measures),
        reasons=[failure.text for failure in failures],
        advice=[advice.text for failure in failures for advice in advise(failure, measures)],
        notes=[note.text for note in find_notes(measures)],
    )


def _baseline(measures: Measures) -> float:
    return max(0.5, measures["length_baseline"])


def find_failures(measures: Measures) -> list[Remark]:
    """Why a reward model does not pass; ids `unscored`, `accuracy`, `batch unknown` and `batch`."""
    failures = []
    if measures["unscored"]:
        text = f"it gives no score to {measures['unscored']:,} of {2 * measures['n']:,} replies"
        failures.append(Remark("unscored", text))
    baseline = _baseline(measures)
    if measures["accuracy_ci"][0] <= baseline:
        rival = "the longer or the shorter reply" if measures["length_baseline"] >= 0.5 else "chance"
        text = (
            f"it ranks {percent(measures['accuracy'], measures['accuracy_ci'])} of {_pairs(measures)} rightly, "
            f"which is not shown to be more than {percent(baseline)} ({rival})"
        )
        failures.append(Remark("accuracy", text))
    batch = measures["invariance"]["batch"]
    if batch is None or math.isnan(batch):
        text = "whether a score moves with what else is in the batch cannot be told: some scores are missing"
        failures.append(Remark("batch unknown", text))
    elif batch > BATCH_TOLERANCE:
        text = f"a score moves by up to {batch:.2f} standard deviations with what else is in the batch"
        failures.append(Remark("batch", text))
    return failures


def pairs_needed(accuracy: float, baseline: float) -> int | None:
    """Fewest held-out pairs at which this accuracy's 95% Wilson interval lies above the baseline; None if none do."""
    if accuracy <= baseline:
        return None
    below, above = 1, 2
    while wilson_interval(accuracy * above, above)[0] <= baseline:
        below, above = above, 2 * above
        if above > _MOST_PAIRS:
            return None
    while above - below > 1:
        middle = (below + above) // 2
        short = wilson_interval(accuracy * middle, middle)[0] <= baseline
        below, above = (middle, above) if short else (below, middle)
    return above


def advise(failure: Remark, measures: Measures) -> list[Remark]:
    """What to look at where a reward model fails; ids `pairs first`, `length`, `more pairs`, `labels`, `training`."""
    if failure.id == "unscored":
        return [
            Remark(
                "pairs first",
                "the pairs without a score come first in gate/pairs.jsonl; fp16 overflows where bf16 does not",
            )
        ]
    if failure.id == "batch":
        return [Remark("padding", "padding reaches the score: check the model's pad token and padding side")]
    if failure.id != "accuracy":
        return []
    longer = measures["prefers_longer"]
    if longer is not None and max(longer, 1 - longer) >= _FOLLOWS_LENGTH:
        which = "longer" if longer > 0.5 else "shorter"
        text = (
            f"it prefers the {which} reply in {percent(max(longer, 1 - longer))} of the pairs: that is what it has "
            "learned; look at `rlhf check` for the pairs' length bias, and add pairs of equal length"
        )
        return [Remark("length", text)]
    needed = needed_of_such(measures)
    if needed is not None and measures["n"] < needed <= _WITHIN_REACH * measures["n"]:
        text = (
            f"at this accuracy about {_rounded(needed)} held-out pairs would show it: raise data.preferences.holdout, "
            "or train on more pairs"
        )
        return [Remark("more pairs", text)]
    labels = "`rlhf check` for contradictory or mislabelled pairs (are chosen and rejected the right way round?)"
    training = (
        "the reward stage's loss: if it did not fall, a higher learning rate or more epochs; if it fell on training "
        "pairs alone, fewer epochs or more pairs"
    )
    wrong = "the most wrong pairs first in gate/pairs.jsonl"
    return [Remark("labels", labels), Remark("pairs first", wrong), Remark("training", training)]


def needed_of_such(measures: Measures) -> int | None:
    """`pairs_needed` to beat both baselines, where pairs share prompts as often as these do."""
    independent = pairs_needed(measures["accuracy"], _baseline(measures))
    if independent is None or not measures["n_effective"]:
        return None
    return math.ceil(independent * measures["n"] / measures["n_effective"])


def find_notes(measures: Measures) -> list[Remark]:
    """What is worth knowing of a reward model and does not stop the run; ids `calibration`, `end token`, `far`."""
    notes = []
    if measures["ece"] is not None and measures["ece"] > _MISCALIBRATED:
        text = f"its confidence is off by {percent(measures['ece'])} on average (calibration)"
        notes.append(Remark("calibration", text))
    eos = measures["invariance"]["eos"]
    if eos is not None and eos > _EOS_MATTERS:
        notes.append(Remark("end token", f"a second end token moves its score by {eos:.2f} standard deviations"))
    scores = measures["scores"]
    if "chosen" in scores and "rejected" in scores and "policy" in scores:
        pairs = (scores["chosen"]["mean"] + scores["rejected"]["mean"]) / 2
        spread = math.hypot(scores["chosen"]["std"], scores["rejected"]["std"]) / math.sqrt(2) or 1.0
        far = abs(scores["policy"]["mean"] - pairs) / spread
        if far > _FAR:
            text = (
                f"the policy's replies score {far:.1f} standard deviations from the pairs it was trained on: it judges "
                "what it has not seen"
            )
            notes.append(Remark("far", text))
    return notes


def _pairs(measures: Measures) -> str:
    prompts = "" if measures["prompts"] == measures["n"] else f" ({measures['prompts']:,} prompts)"
    return f"{measures['n']:,} held-out pairs{prompts}"


def _rounded(number: int) -> str:
    """To two digits, upwards: it is an estimate."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / unit) * unit:,}"
