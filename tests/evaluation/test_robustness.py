from __future__ import annotations

import pytest

from rlhf.evaluation.robustness import robustness
from tests.support.reports import make_row


def rows(perturbed: bool = False, **scores: list[float | None]):
    """A row a score; of perturbed ones the numbers begin at 2, as if the first two inputs were not texts."""
    made = [
        make_row(index, **{policy: [value] for policy, value in zip(scores, values, strict=True)})
        for index, values in enumerate(zip(*scores.values(), strict=True))
    ]
    return [{**row, "perturbation": "typos"} for row in made[2:]] if perturbed else made


CLEAN = rows(base=[0.5] * 12, sft=[0.0, 0.0, *[0.8] * 10], ppo=[1.0] * 12)
TYPOS = rows(perturbed=True, base=[0.5] * 12, sft=[0.0, 0.0, *[0.2, 0.4] * 5], ppo=[0.9] * 12)


def test_what_a_perturbation_costs_is_the_difference_on_the_same_prompts():
    found = robustness(CLEAN, TYPOS, ["base", "sft", "ppo"], ["gold"], {"sft": "base", "ppo": "sft"})
    base, sft, ppo = found["changes"]
    assert (base["policy"], base["mean_difference"], base["verdict"]) == ("base", 0.0, "no difference")
    assert (sft["clean_mean"], sft["perturbed_mean"]) == (pytest.approx(0.8), pytest.approx(0.3))
    assert (sft["mean_difference"], sft["n"], sft["verdict"]) == (pytest.approx(-0.5), 10, "worse")
    low, high = sft["difference_ci"]
    assert low < -0.5 < high < 0
    assert ppo["mean_difference"] == pytest.approx(-0.1)
    assert sft["p_adjusted"] >= sft["p_value"] == pytest.approx(2 / 2**10)


def test_policies_on_perturbed_inputs():
    found = robustness(CLEAN, TYPOS, ["base", "sft", "ppo"], ["gold"], {"sft": "base", "ppo": "sft"})
    shown = {(row["policy"], row["baseline"]): row for row in found["comparisons"]}
    assert set(shown) == {("sft", "base"), ("ppo", "sft"), ("ppo", "base")}
    assert shown["ppo", "sft"]["mean_difference"] == pytest.approx(0.6)
    assert shown["sft", "base"]["verdict"] == "worse"
    assert {(row["perturbation"], row["n_comparisons"]) for row in found["comparisons"]} == {("typos", 3)}


def test_nothing_perturbed_and_no_score():
    assert robustness(CLEAN, [], ["base", "sft"], ["gold"], {}) is None
    unscored = rows(perturbed=True, base=[None] * 12)
    (change,) = robustness(CLEAN, unscored, ["base"], ["gold"], {})["changes"]
    assert (change["n"], change["mean_difference"], change["verdict"]) == (0, None, "no difference")
