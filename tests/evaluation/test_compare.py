from __future__ import annotations

import math
from typing import get_type_hints

import numpy as np
import pytest

from rlhf.evaluation.compare import (
    Comparison,
    compare,
    compare_policies,
    comparison_pairs,
    reply_values,
    summarise,
    verdict_of,
)
from tests.evaluation.fabricated import make_row, reply, sample_rows


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
    assert set(result) == set(get_type_hints(Comparison))


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
    one = compare([make_row(0, base=[0.0], sft=[1.0])], "sft", "base", "gold")
    assert (one["mean_difference"], one["difference_ci"], one["verdict"]) == (1.0, None, "no difference")


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
    found = compare_policies(rows, ["base", "sft", "dpo"], ["gold", "reward"], {"sft": "base", "dpo": "sft"})
    assert [(row["policy"], row["baseline"], row["judge"]) for row in found] == [
        ("sft", "base", "gold"), ("sft", "base", "reward"), ("dpo", "sft", "gold"), ("dpo", "sft", "reward"),
        ("dpo", "base", "gold"), ("dpo", "base", "reward"),
    ]  # fmt: skip


def test_reply_values_pads_with_gaps():
    rows = [make_row(0, sft=[1.0]), make_row(1, sft=[2.0, 3.0]), make_row(2, base=[0.0])]
    np.testing.assert_array_equal(
        reply_values(rows, "sft", "scores", "gold"), [[1.0, math.nan], [2.0, 3.0], [math.nan, math.nan]]
    )
    assert reply_values([], "sft", "kl").shape == (0, 0)
    np.testing.assert_array_equal(reply_values(rows[:1], "sft", "finished"), [[1.0]])


def test_summary():
    rows = [make_row(i, sft=[float(i), float(i)]) for i in range(9)]
    summary = summarise(rows, "sft", ["gold"], "base")
    assert summary["scores"]["gold"]["mean"] == 4.0
    assert summary["scores"]["gold"]["ci"][0] < 4.0 < summary["scores"]["gold"]["ci"][1]
    assert summary["finished"] == {"mean": 1.0, "ci": [1.0, 1.0], "n": 9}
    assert summary["kl"] == {"mean": None, "ci": None, "n": 0}
    assert summary["kl_reference"] == "base"
