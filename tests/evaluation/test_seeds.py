from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlhf.evaluation.compare import compare, compare_policies
from rlhf.evaluation.seeds import Spread, over_seeds, summarise_seeds
from tests.support.reports import make_row


def _seed(difference: float, half: float = 0.0, n: int = 100):
    row = compare([make_row(i, base=[0.0], sft=[difference]) for i in range(n)], "sft", "base", "gold")
    return {**row, "difference_ci": [difference - half, difference + half]}


def test_seeds_by_hand():
    """Prompts that all agree leave Student's interval over seeds: 2 +/- 4.303 * 1 / sqrt(3)."""
    summary = summarise_seeds([_seed(1.0), _seed(2.0), _seed(3.0)])
    assert (summary["n_seeds"], summary["mean"], summary["std"], summary["min"], summary["max"]) == (
        3,
        2.0,
        1.0,
        1.0,
        3.0,
    )
    assert summary["ci"] == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-3)
    assert (summary["win_rate"], summary["verdict"]) == (1.0, "no difference")


def test_seeds_that_agree_leave_the_interval_over_prompts():
    """It was on the same prompts: three runs that came out alike are no three times as much evidence."""
    summary = summarise_seeds([_seed(1.0, half=0.2)] * 3)
    assert summary["ci"] == pytest.approx([0.8, 1.2])
    assert (summary["std"], summary["verdict"]) == (0.0, "better")


def test_both_variances_add():
    over_prompts = 0.3 / scipy_stats.t.ppf(0.975, 99)
    error = np.sqrt(1 / 3 + over_prompts**2)
    low, high = summarise_seeds([_seed(1.0, 0.3), _seed(2.0, 0.3), _seed(3.0, 0.3)])["ci"]
    assert (low + high) / 2 == pytest.approx(2.0)
    assert scipy_stats.t.ppf(0.975, 3) * error < (high - low) / 2 < scipy_stats.t.ppf(0.975, 2) * error


def test_the_interval_covers_recipes_difference_95_times_in_100():
    """Seeds move the true difference, prompts are shared: both must be in the interval."""
    draw, hits, trials = np.random.default_rng(0), 0, 1000
    t = scipy_stats.t.ppf(0.975, 49)
    template = _seed(0.0, n=50)
    for _ in range(trials):
        prompts_P = draw.normal(0, 1, 50)  # of the recipe, on these prompts
        seeds = []
        for _ in range(4):
            values_P = 0.3 + prompts_P + draw.normal(0, 0.15) + draw.normal(0, 0.3, 50)
            half = t * values_P.std(ddof=1) / np.sqrt(50)
            mean = values_P.mean()
            seeds.append({**template, "mean_difference": mean, "difference_ci": [mean - half, mean + half]})
        low, high = summarise_seeds(seeds)["ci"]
        hits += low <= 0.3 <= high
    assert 0.94 <= hits / trials <= 0.985


def test_few_seeds_have_no_interval():
    two = summarise_seeds([_seed(1.0), _seed(3.0)])
    assert (two["mean"], two["ci"], two["verdict"]) == (2.0, None, "no difference")
    assert two["std"] == pytest.approx(2**0.5)
    single = summarise_seeds([_seed(1.0)])
    assert (single["mean"], single["std"], single["ci"]) == (1.0, None, None)
    empty = compare([], "sft", "base", "gold")
    none = summarise_seeds([empty])
    assert (none["n_seeds"], none["mean"], none["ci"], none["verdict"]) == (0, None, None, "no difference")
    assert summarise_seeds([_seed(1.0), empty])["n_seeds"] == 1


def test_other_comparisons_do_not_mix():
    with pytest.raises(ValueError, match="one comparison"):
        summarise_seeds([_seed(1.0), {**_seed(1.0), "judge": "reward"}])
    with pytest.raises(ValueError, match="one comparison"):
        summarise_seeds([])


def test_p_value_and_interval_are_one():
    """At the level 1 - p the interval ends at zero; sign flips over 100 prompts show no less than 2^-99."""
    summary = summarise_seeds([_seed(0.1, 0.3), _seed(0.2, 0.3), _seed(0.6, 0.3)])
    assert summary["p_value"] == summary["p_adjusted"] > 0.05
    spread = Spread(summary["std"] ** 2 / 3, 3, (0.3 / scipy_stats.t.ppf(0.975, 99)) ** 2, 100)
    assert spread.half_width(summary["p_value"]) == pytest.approx(summary["mean"])
    assert spread.half_width(0.05) == pytest.approx(summary["ci"][1] - summary["mean"])
    assert summarise_seeds([_seed(1.0)] * 3)["p_value"] == pytest.approx(2.0**-99)
    assert summarise_seeds([_seed(0.0)] * 3)["p_value"] == 1.0


def test_seeds_are_joined_to_recipes():
    rows = [{**_seed(mean), "policy": policy} for policy, mean in (("dpo", 0.2), ("dpo@1", 0.5), ("dpo@2", 0.8))]
    _, (recipe,) = over_seeds([_seed(0.9), *rows])
    assert (recipe["policy"], recipe["baseline"], recipe["n_seeds"]) == ("dpo", "base", 3)
    assert (recipe["mean"], recipe["min"], recipe["max"]) == pytest.approx((0.5, 0.2, 0.8))
    assert recipe["std"] == pytest.approx(0.3)
    assert rows[1]["policy"] == "dpo@1"
    assert over_seeds([_seed(0.9), rows[0]])[1] == []


def test_what_is_read_together_is_corrected_together():
    """Four recipes of three seeds and one of one are five comparisons, whose smallest p-value counts five times."""
    rows = [
        {**_seed(0.2, 0.1, n=20), "policy": policy, "judge": judge}
        for judge in "abcd" for policy in ("dpo", "dpo@1", "dpo@2")
    ] + [{**_seed(0.2, 0.1, n=20), "policy": "sft", "judge": "a", "p_value": 0.02}]  # fmt: skip
    comparisons, recipes = over_seeds(rows)
    assert [(row["policy"], row["n_seeds"], row["n_comparisons"]) for row in recipes] == [("dpo", 3, 5)] * 4
    assert [row["p_adjusted"] for row in recipes] == pytest.approx([5 * recipes[0]["p_value"]] * 4)
    assert [row["verdict"] for row in recipes] == ["better"] * 4
    assert [row["policy"] for row in comparisons] == [row["policy"] for row in rows]
    assert [row["n_comparisons"] for row in comparisons] == [12] * 12 + [5]
    assert (comparisons[-1]["p_adjusted"], comparisons[-1]["verdict"]) == (0.02, "better")


def test_a_seed_shows_no_more_than_its_recipe():
    """The first seed is surely better; over the seeds nothing is shown."""
    rows = [{**_seed(mean, 0.1), "policy": f"dpo{seed}"} for seed, mean in (("", 1.0), ("@1", -0.2), ("@2", 0.1))]
    comparisons, (recipe,) = over_seeds(rows)
    assert (recipe["verdict"], recipe["corrected"]) == ("no difference", False)
    assert [row["verdict"] for row in comparisons] == ["no difference"] * 3
    assert comparisons[0]["p_adjusted"] == recipe["p_adjusted"] > 0.05
    assert comparisons[0]["corrected"]


def test_two_seeds_have_no_interval_and_are_read_one_by_one():
    rows = [{**_seed(1.0, 0.1), "policy": policy} for policy in ("dpo", "dpo@1")]
    comparisons, (recipe,) = over_seeds(rows)
    assert (recipe["n_seeds"], recipe["p_value"], recipe["verdict"]) == (2, None, "no difference")
    assert [(row["verdict"], row["n_comparisons"]) for row in comparisons] == [("better", 2)] * 2


def _false_reports(seeds: int, between: float, reports: int, prompts: int = 60, judges: int = 12) -> float:
    """Share of reports with a false verdict where no recipe makes a difference.

    Judges are independent, the worst case. Seeds differ by `between` standard deviations of a prompt's difference:
    above 0 a single seed's model does differ, and only the recipes' verdicts are false.
    """
    draw = np.random.default_rng(0)
    t, template, false = scipy_stats.t.ppf(0.975, prompts - 1), _seed(0.0, n=prompts), 0
    names = ["dpo", *(f"dpo@{number}" for number in range(1, seeds))]
    for _ in range(reports):
        shared_JP = draw.normal(size=(judges, 1, prompts))
        values_JKP = shared_JP + draw.normal(0, 0.5, (judges, seeds, prompts))
        values_JKP += draw.normal(0, between, (judges, seeds, 1)) if between else 0.0
        mean_JK, half_JK = values_JKP.mean(-1), t * scipy_stats.sem(values_JKP, axis=-1)
        p_JK = scipy_stats.ttest_1samp(values_JKP, 0.0, axis=-1).pvalue
        rows = [
            {**template, "policy": name, "judge": f"{j}", "mean_difference": float(mean_JK[j, k]),
             "difference_ci": [mean_JK[j, k] - half_JK[j, k], mean_JK[j, k] + half_JK[j, k]], "p_value": p_JK[j, k]}
            for j in range(judges) for k, name in enumerate(names)
        ]  # fmt: skip
        comparisons, recipes = over_seeds(rows)
        told = [*recipes, *([] if between else comparisons)]
        false += any(row["verdict"] != "no difference" for row in told)
    return false / reports


@pytest.mark.parametrize(("seeds", "between"), [(1, 0.0), (3, 0.0), (5, 0.0), (3, 0.3), (5, 0.3), (3, 2.0)])
def test_a_report_where_nothing_is_true_says_so_95_times_in_100(seeds, between):
    """Without a correction three seeds that differ by little had a false verdict in 40 of 100 such reports."""
    assert _false_reports(seeds, between, reports=150) <= 0.05 + 2 * (0.05 * 0.95 / 150) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_same_through_all_that_the_report_computes(seeds):
    """Scores of replies instead of intervals: bootstrap, sign flips, Holm, seeds."""
    draw, reports, false = np.random.default_rng(1), 60, 0
    names = ["base", "dpo", *(f"dpo@{number}" for number in range(1, seeds))]
    judges = [f"judge {number}" for number in range(12)]
    for _ in range(reports):
        scores_JPN = draw.normal(size=(len(judges), 30, len(names)))
        rows = [
            {"replies": {
                name: [{"scores": {judge: scores_JPN[j, p, n] for j, judge in enumerate(judges)}, "tokens": 9}]
                for n, name in enumerate(names)
            }}
            for p in range(30)
        ]  # fmt: skip
        comparisons, summaries = over_seeds(compare_policies(rows, names, judges, {}))
        false += any(row["verdict"] != "no difference" for row in [*comparisons, *summaries])
    assert false / reports <= 0.05 + 2 * (0.05 * 0.95 / reports) ** 0.5
