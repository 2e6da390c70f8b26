"""What is measured of policies where nothing judges their replies: paired differences, and no verdict.

Apart from `held_out`, which reads data for models: a report is made without torch. Axes: P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from rlhf.evaluation.compare import comparison_pairs
from rlhf.evaluation.diversity import distinct_n, repetition
from rlhf.evaluation.samples import Row, as_array, completion_values
from rlhf.evaluation.stats import Floats, finite_mean, mean_interval, mean_per_prompt, share_interval, wins

LIKELIHOODS = "likelihoods.jsonl"
DEMONSTRATIONS, CHOSEN, REJECTED = "held-out demonstrations", "held-out chosen replies", "held-out rejected replies"
"""Sets of `LikelihoodRow`: the values of the first are means over tokens, those of the pairs' sides sums."""


class LikelihoodRow(TypedDict):
    """A line of `likelihoods.jsonl`: a held-out reply, and how likely each policy finds it."""

    set: str
    """`DEMONSTRATIONS`, `CHOSEN` or `REJECTED`; the rows of the last two are of the same pairs, in the same order."""
    origin: str
    """File and line."""
    prompt: int
    """Rows of one prompt have the same number."""
    values: dict[str, float | None]
    """By policy: log-likelihood, nats a token of a demonstration, nats a reply of the others; null for none."""


class Measured(TypedDict):
    """A policy beside a baseline by something that needs no judge; an entry of `measured` in report.json.

    Means and intervals are over prompts, null where there is nothing to compute them from. No difference here says that
    a policy got better or worse.
    """

    policy: str
    """The policy."""
    baseline: str
    """The policy that it is compared with."""
    measure: str
    """One of `measure_without_judge`."""
    policy_mean: float | None
    """Mean of the policy, over the prompts on which both have a value."""
    baseline_mean: float | None
    """The same of the baseline."""
    mean_difference: float | None
    """policy_mean - baseline_mean."""
    difference_ci: list[float] | None
    """Its 95% interval by bootstrap over prompts."""
    higher: float | None
    """Share of prompts, or within a prompt of pairs, on which the policy's value is the higher one, ties half."""
    higher_ci: list[float] | None
    """Its 95% interval."""
    n: int
    """Prompts on which both have a value."""


def measure_without_judge(
    rows: Sequence[Row],
    held_out: Sequence[LikelihoodRow],
    policies: Sequence[str],
    parents: Mapping[str, str],
) -> list[Measured]:
    """Every policy beside its parent and the base, by what needs no judge; what nobody has a value of is left out.

    * `loss`: -log p of a held-out demonstration's reply, mean over its tokens, nats a token.
    * `margin`: log p(chosen) - log p(rejected) of a held-out pair, nats. The policy's less that of the policy it was
      trained from is DPO's implicit reward margin over beta, and `higher` is DPO's held-out accuracy (Rafailov et al.
      2023, "Direct Preference Optimization", equation 5).
    * `chosen`: log p of a pair's chosen reply, nats, which can fall while the margin rises.
    * `length`, tokens; `finished`, share of replies that ended by themselves; `distinct_1`, `distinct_2` and
      `repetition`, shares (`diversity`): of replies to the prompts of the comparison.

    Args:
        rows: Lines of samples.jsonl.
        held_out: Lines of `likelihoods.jsonl`.
        policies: Names as in the rows.
        parents: Policy -> the policy it was trained from.
    """
    values = {name: {**_likelihoods(held_out, name), **_of_replies(rows, name)} for name in policies}
    measured = [
        _paired(policy, baseline, measure, values[policy][measure], values[baseline][measure])
        for policy, baseline in comparison_pairs(policies, parents)
        for measure in values[policy]
    ]
    return [entry for entry in measured if entry["n"]]


def _paired(policy: str, baseline: str, measure: str, policy_PK: Floats, baseline_PK: Floats) -> Measured:
    """Two policies by one measure, which has K values of each prompt; value k of both is of the same row."""
    both_PK = np.isfinite(policy_PK) & np.isfinite(baseline_PK)
    policy_PK, baseline_PK = (np.where(both_PK, values_PK, np.nan) for values_PK in (policy_PK, baseline_PK))
    difference_P = mean_per_prompt(policy_PK - baseline_PK)
    higher_P = mean_per_prompt(wins(policy_PK - baseline_PK))
    return Measured(
        policy=policy,
        baseline=baseline,
        measure=measure,
        policy_mean=finite_mean(mean_per_prompt(policy_PK)),
        baseline_mean=finite_mean(mean_per_prompt(baseline_PK)),
        mean_difference=finite_mean(difference_P),
        difference_ci=mean_interval(difference_P),
        higher=finite_mean(higher_P),
        higher_ci=share_interval(higher_P),
        n=int(np.isfinite(difference_P).sum()),
    )


def _likelihoods(rows: Sequence[LikelihoodRow], policy: str) -> dict[str, Floats]:
    """A policy's values on the held-out rows, arrays (P, K) of K rows of a prompt."""
    by_set = {
        name: [row for row in rows if row["set"] == name and policy in row["values"]]
        for name in (DEMONSTRATIONS, CHOSEN, REJECTED)
    }

    def array(name: str) -> Floats:
        prompts: dict[int, list[float | None]] = {}
        for row in by_set[name]:
            prompts.setdefault(row["prompt"], []).append(row["values"][policy])
        return as_array([*prompts.values()])

    chosen_PK = array(CHOSEN)
    return {"loss": -array(DEMONSTRATIONS), "margin": chosen_PK - array(REJECTED), "chosen": chosen_PK}


def _of_replies(rows: Sequence[Row], policy: str) -> dict[str, Floats]:
    """What a policy's replies to each prompt are like, arrays (P, 1): means over its samples."""
    texts = [[sample["text"] for sample in row["replies"].get(policy, [])] for row in rows]
    repeated_PS = as_array([[repetition(text) for text in samples] for samples in texts])
    by_prompt = {
        "length": mean_per_prompt(completion_values(rows, policy, "tokens")),
        "finished": mean_per_prompt(completion_values(rows, policy, "finished")),
        "distinct_1": np.array([distinct_n(samples, 1) for samples in texts], dtype=np.float64),
        "distinct_2": np.array([distinct_n(samples, 2) for samples in texts], dtype=np.float64),
        "repetition": mean_per_prompt(repeated_PS),
    }
    return {measure: values_P[:, None] for measure, values_P in by_prompt.items()}
