from __future__ import annotations

import math
from typing import get_type_hints

import numpy as np
import pytest

from rlhf.evaluation.compare import (
    Comparison,
    GroupComparison,
    compare,
    compare_groups,
    compare_policies,
    comparison_pairs,
    correct,
    judgement,
    verdict_of,
)
from rlhf.evaluation.samples import completion_values, scores
from rlhf.evaluation.summary import Summary, summarise
from tests.support.reports import make_row, preference_row, reply, sample_rows


def test_pairs_are_parent_then_base_each_once():
    parents = {"sft": "base", "dpo": "sft", "ppo": "sft"}
    assert comparison_pairs(["base", "sft", "dpo", "ppo"], parents) == [
        ("sft", "base"), ("dpo", "sft"), ("dpo", "base"), ("ppo", "sft"), ("ppo", "base"),
    ]  # fmt: skip
    assert comparison_pairs(["base", "dpo"], {"dpo": "base"}) == [("dpo", "base")]
    assert comparison_pairs(["base", "dpo"], {"dpo": "sft"}) == [("dpo", "base")]  # a parent that does not reply
    assert comparison_pairs(["base"], {}) == []


@pytest.mark.parametrize(
    ("interval", "n", "verdict"),
    [
        ([0.1, 0.2], 50, "better"),
        ([-0.2, -0.1], 50, "worse"),
        ([-0.1, 0.1], 50, "no difference"),
        ([0.0, 0.1], 50, "no difference"),
        ([-0.1, 0.0], 50, "no difference"),
        ([0.1, 0.2], 5, "no difference"),
        ([0.1, 0.2], 6, "better"),
        (None, 0, "no difference"),
    ],
)
def test_verdict_is_read_from_the_interval(interval, n, verdict):
    assert verdict_of(interval, n) == verdict


def test_comparison_by_hand():
    rows = [make_row(i, base=[1.0, 2.0], sft=[3.0, 2.0]) for i in range(8)]
    result = compare(rows, "sft", "base", "gold")
    assert (result["policy_mean"], result["baseline_mean"]) == (2.5, 1.5)
    assert result["mean_difference"] == 1.0
    assert result["difference_ci"] == [1.0, 1.0]
    assert result["win_rate"] == 0.875  # 3 beats both, 2 beats one and ties one
    assert (result["n"], result["left_out"], result["verdict"]) == (8, 0, "better")
    assert (result["p_value"], result["p_adjusted"], result["n_comparisons"]) == (2 / 256, 2 / 256, 1)
    assert result["win_rate_length_controlled"] == pytest.approx(0.875, abs=1e-4)  # all replies are as long
    assert result["corrected"] is False
    assert set(result) == set(get_type_hints(Comparison))


def test_ten_wins_of_ten_are_not_certain():
    """Neither by scores nor by a judge of pairs, whose difference is wins less losses."""
    scored = compare([make_row(i, base=[0.0], sft=[1.0]) for i in range(10)], "sft", "base", "gold")
    asked = compare([preference_row(i, [1.0]) for i in range(10)], "sft", "base", "pairs")
    for result in (scored, asked):
        assert (result["win_rate"], result["win_rate_ci"][1], result["verdict"]) == (1.0, 1.0, "better")
        assert 0.6 < result["win_rate_ci"][0] < 0.8
    assert asked["difference_ci"] == [2 * end - 1 for end in asked["win_rate_ci"]]


def test_samples_of_a_prompt_stay_together():
    """Many samples of few prompts must not pass for many observations."""
    draw = np.random.default_rng(0)
    shifts = draw.normal(0.0, 1.0, size=10)
    rows = [
        make_row(i, base=[0.0] * 50, sft=(shift + draw.normal(0, 0.01, 50)).tolist()) for i, shift in enumerate(shifts)
    ]
    low, high = compare(rows, "sft", "base", "gold")["difference_ci"]
    assert high - low > 2 * shifts.std() / math.sqrt(10)


def test_pairing_removes_what_prompts_have_in_common():
    draw = np.random.default_rng(1)
    rows = []
    for i in range(40):
        hard = draw.normal(0, 10)
        rows.append(make_row(i, base=[hard + draw.normal(0, 0.1)], sft=[hard + 0.5 + draw.normal(0, 0.1)]))
    result = compare(rows, "sft", "base", "gold")
    assert result["verdict"] == "better"
    assert result["mean_difference"] == pytest.approx(0.5, abs=0.1)
    reverse = compare(rows, "base", "sft", "gold")
    assert reverse["verdict"] == "worse"
    assert reverse["mean_difference"] == pytest.approx(-result["mean_difference"])
    assert reverse["win_rate"] == pytest.approx(1 - result["win_rate"])


def test_prompts_without_a_score_on_one_side_are_left_out_of_both_means():
    rows = [make_row(i, base=[0.0], sft=[1.0]) for i in range(7)]
    rows += [make_row(7, base=[None, None], sft=[100.0]), make_row(8, base=[50.0], sft=[math.nan])]
    rows += [make_row(9, base=[None, 0.0], sft=[1.0, None])]
    result = compare(rows, "sft", "base", "gold")
    assert (result["n"], result["left_out"]) == (8, 2)
    assert (result["policy_mean"], result["baseline_mean"], result["win_rate"]) == (1.0, 0.0, 1.0)


def test_nothing_to_compare_is_no_difference():
    result = compare([make_row(0, base=[None], sft=[1.0])], "sft", "base", "gold")
    assert (result["n"], result["left_out"], result["verdict"]) == (0, 1, "no difference")
    assert result["mean_difference"] is result["difference_ci"] is result["win_rate"] is None
    assert compare([], "sft", "base", "gold")["n"] == 0
    single = compare([make_row(0, base=[0.0], sft=[1.0])], "sft", "base", "gold")
    assert (single["mean_difference"], single["difference_ci"], single["verdict"]) == (1.0, None, "no difference")


def test_equal_policies_show_no_difference():
    rows = [make_row(i, base=[0.5, 0.7], sft=[0.5, 0.7]) for i in range(30)]
    result = compare(rows, "sft", "base", "gold")
    assert (result["verdict"], result["win_rate"], result["mean_difference"]) == ("no difference", 0.5, 0.0)


def test_kl_and_lengths():
    samples = {
        "base": [reply(tokens=10, gold=0.0)],
        "sft": [reply(tokens=4, kl=1.0, gold=1.0), reply(tokens=8, kl=3.0, gold=1.0)],
    }
    rows = [{"index": 0, "prompt": "p", "columns": {}, "replies": samples}]
    result = compare(rows, "sft", "base", "gold")
    assert (result["kl"], result["mean_length"], result["baseline_mean_length"]) == (2.0, 6.0, 10.0)
    assert compare(rows, "base", "sft", "gold")["kl"] is None


def test_every_pair_by_every_judge():
    rows = sample_rows(prompts=12, samples=2)
    comparisons = compare_policies(rows, ["base", "sft", "dpo"], ["gold", "reward"], {"sft": "base", "dpo": "sft"})
    assert [(row["policy"], row["baseline"], row["judge"]) for row in comparisons] == [
        ("sft", "base", "gold"), ("sft", "base", "reward"), ("dpo", "sft", "gold"), ("dpo", "sft", "reward"),
        ("dpo", "base", "gold"), ("dpo", "base", "reward"),
    ]  # fmt: skip


def test_completion_values_pads_with_gaps():
    rows = [make_row(0, sft=[1.0]), make_row(1, sft=[2.0, 3.0]), make_row(2, base=[0.0])]
    np.testing.assert_array_equal(scores(rows, "sft", "gold"), [[1.0, math.nan], [2.0, 3.0], [math.nan, math.nan]])
    assert completion_values([], "sft", "kl").shape == (0, 0)
    np.testing.assert_array_equal(completion_values(rows[:1], "sft", "finished"), [[1.0]])


def test_summary():
    rows = [make_row(i, sft=[float(i), float(i)]) for i in range(9)]
    summary = summarise(rows, "sft", ["gold"], "base")
    assert summary["scores"]["gold"]["mean"] == 4.0
    assert summary["scores"]["gold"]["ci"][0] < 4.0 < summary["scores"]["gold"]["ci"][1]
    assert summary["finished"] == {"mean": 1.0, "ci": [1.0, 1.0], "n": 9}
    assert summary["kl"] == {"mean": None, "ci": None, "n": 0}
    assert summary["kl_reference"] == "base"
    assert set(summary) == set(get_type_hints(Summary))


def test_summary_says_how_varied_replies_are():
    texts = [["a b", "a b"], ["c d e f", "c d c d c d"], ["", ""]]
    rows = [
        {"index": i, "prompt": "p", "columns": {}, "replies": {"sft": [reply(text=text) for text in samples]}}
        for i, samples in enumerate(texts)
    ]
    summary = summarise(rows, "sft", [])
    assert (summary["distinct_1"]["mean"], summary["distinct_1"]["n"]) == ((2 / 4 + 4 / 10) / 2, 2)
    assert summary["distinct_1"]["all"] == pytest.approx(6 / 14)  # a to f, of all words
    assert summary["distinct_2"]["mean"] == pytest.approx((1 / 2 + 4 / 8) / 2)  # cd, de, ef, dc
    assert summary["repetition"] == {"mean": pytest.approx((0 + 1 / 3) / 2), "ci": None, "n": 1}
    assert summarise(rows, "dpo", [])["distinct_1"] == {"mean": None, "ci": None, "n": 0, "all": None}


def test_a_difference_that_may_be_chance_among_so_many_is_corrected():
    """At p = 0.03 it is a difference by itself and none among twenty comparisons of which the others show nothing."""
    unsure = compare([make_row(i, base=[0.0], sft=[1.0]) for i in range(6)], "sft", "base", "gold")
    assert (unsure["p_value"], unsure["verdict"], unsure["corrected"]) == (2 / 64, "better", False)
    none = {**unsure, "p_value": 0.9, "difference_ci": [-1.0, 1.0]}
    first, *others = correct([unsure] + [none] * 19)
    assert (first["p_adjusted"], first["verdict"], first["corrected"]) == (0.625, "no difference", True)
    assert all((row["verdict"], row["corrected"]) == ("no difference", False) for row in others)
    assert first["n_comparisons"] == 20
    assert unsure["verdict"] == "better"  # the given row is left as it was
    clear = {**unsure, "p_value": 0.001}
    assert correct([clear] + [none] * 19)[0]["verdict"] == "better"


def test_a_comparison_without_scores_is_not_counted():
    rows = [make_row(i, base=[0.0], sft=[1.0], dpo=[None]) for i in range(6)]
    comparisons = compare_policies(rows, ["base", "sft", "dpo"], ["gold", "nobody"], {"sft": "base", "dpo": "sft"})
    assert {row["n_comparisons"] for row in comparisons} == {1}
    assert [row["verdict"] for row in comparisons] == ["better"] + ["no difference"] * 5
    assert comparisons[-1]["p_value"] is comparisons[-1]["p_adjusted"] is None


def test_false_differences_are_rare_however_many_are_compared():
    """Ten comparisons, none with a difference: a report that calls one has to be rare."""
    draw, wrong, alone = np.random.default_rng(0), 0, 0
    for _ in range(20):
        comparisons = []
        for _ in range(10):
            rows = [make_row(i, base=[a], sft=[b]) for i, (a, b) in enumerate(draw.normal(size=(25, 2)).tolist())]
            comparisons.append(compare(rows, "sft", "base", "gold"))
        wrong += any(row["verdict"] != "no difference" for row in correct(comparisons))
        alone += any(row["verdict"] != "no difference" for row in comparisons)
    assert wrong <= 3  # 1 expected
    assert alone >= 4  # 8 expected


def test_writing_samples_down_twice_shows_nothing_more():
    rows = sample_rows(prompts=30, samples=2)
    twice = [{**row, "replies": {policy: samples * 2 for policy, samples in row["replies"].items()}} for row in rows]
    once, again = (compare(given, "dpo", "sft", "gold") for given in (rows, twice))
    for field in ("difference_ci", "win_rate_ci", "p_value", "win_rate_length_controlled_ci"):
        assert again[field] == pytest.approx(once[field], abs=1e-4)


def test_a_judge_that_likes_length_is_controlled_for():
    draw = np.random.default_rng(1)
    rows = []
    for i in range(150):
        lengths = {"base": draw.integers(20, 60, 3), "sft": draw.integers(30, 70, 3)}
        replies = {name: [reply(tokens=int(n), length=float(n)) for n in lengths[name]] for name in lengths}
        rows.append({"index": i, "prompt": "p", "columns": {}, "replies": replies})
    result = compare(rows, "sft", "base", "length")
    assert result["win_rate"] > 0.65
    low, high = result["win_rate_length_controlled_ci"]
    assert low < 0.5 < high
    assert high < result["win_rate_ci"][0]


def test_a_judge_of_pairs_by_hand():
    rows = [preference_row(i, [1.0, 0.5]) for i in range(7)] + [
        preference_row(7, [0.0, None]),
        preference_row(8, [None]),
    ]
    result = compare(rows, "sft", "base", "pairs")
    assert result["win_rate"] == pytest.approx((7 * 0.75 + 0) / 8)
    assert result["mean_difference"] == pytest.approx((7 * 0.5 - 1) / 8)  # 2 p - 1
    assert (result["policy_mean"], result["baseline_mean"]) == (None, None)
    assert (result["n"], result["left_out"]) == (8, 1)
    assert result["difference_ci"] == pytest.approx([2 * end - 1 for end in result["win_rate_ci"]])
    assert result["win_rate_length_controlled"] == pytest.approx(result["win_rate"], abs=1e-4)


def test_a_judge_of_pairs_turned_around():
    rows = [preference_row(i, [1.0, 0.5, None]) for i in range(8)]
    turned = compare(rows, "base", "sft", "pairs")
    assert (turned["win_rate"], turned["mean_difference"], turned["verdict"]) == (0.25, -0.5, "worse")
    assert compare(rows, "sft", "base", "pairs")["verdict"] == "better"
    other = compare(rows, "dpo", "base", "pairs")
    assert (other["n"], other["left_out"], other["win_rate"], other["p_value"]) == (0, 8, None, None)


def test_both_kinds_of_judges_agree_on_the_same_wins():
    """One sample a policy: whether a judge gives scores or says which is better, the wins are the same."""
    draw = np.random.default_rng(2)
    rows = []
    for i, (a, b) in enumerate(draw.integers(0, 4, (40, 2)).tolist()):
        replies = {"base": [reply(tokens=10 + a, gold=b)], "sft": [reply(tokens=14 - b, gold=a)]}
        share = 1.0 if a > b else 0.0 if a < b else 0.5
        rows.append({"index": i, "prompt": "p", "columns": {}, "replies": replies,
                     "preferences": {"pairs": {"sft vs base": [share]}}})  # fmt: skip
    scored, asked = (compare(rows, "sft", "base", judge) for judge in ("gold", "pairs"))
    for field in ("win_rate", "win_rate_ci", "win_rate_length_controlled", "win_rate_length_controlled_ci", "n"):
        assert asked[field] == scored[field]
    np.testing.assert_array_equal(
        judgement(rows, "sft", "base", "pairs").longer_PK, judgement(rows, "sft", "base", "gold").longer_PK
    )


def test_groups_are_compared_apart_and_small_ones_together():
    def row(index, topic, value):
        return {**make_row(index, base=[0.0], sft=[value]), "columns": {"topic": topic}}

    rows = [row(i, "billing", 1.0) for i in range(6)] + [row(i, "bug", -1.0) for i in range(6, 15)]
    rows += [row(i, "rare", 1.0) for i in range(15, 20)] + [row(20, None, 1.0), row(21, 7, 1.0)]
    groups = compare_groups(rows, ["base", "sft"], ["gold"], {"sft": "base"}, lambda row: row["columns"].get("topic"))
    assert [(entry["group"], entry["n"], entry["verdict"]) for entry in groups] == [
        ("bug", 9, "worse"), ("billing", 6, "better"), ("other", 7, "better"),
    ]  # fmt: skip
    assert all(set(entry) == set(get_type_hints(GroupComparison)) for entry in groups)
    assert [entry["p_adjusted"] for entry in groups] == [3 * 2 / 512, 1 * 2 / 64, 2 * 2 / 128]
    overall = compare_policies(rows, ["base", "sft"], ["gold"], {"sft": "base"})
    assert [entry["n_comparisons"] for entry in overall] == [1]  # not corrected for the groups


def test_one_group_is_no_grouping():
    rows = sample_rows(prompts=10, samples=1)
    parents = {"sft": "base"}
    assert compare_groups(rows, ["base", "sft"], ["gold"], parents, lambda row: "all") == []
    assert compare_groups(rows, ["base", "sft"], ["gold"], parents, lambda row: row["index"]) == []
    assert compare_groups([], ["base", "sft"], ["gold"], parents, lambda row: None) == []
