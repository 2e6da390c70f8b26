from __future__ import annotations

import pytest

from rlhf.evaluation import words

ROW = {
    "policy": "dpo", "baseline": "sft", "judge": "gold", "mean_difference": 0.12, "difference_ci": [0.09, 0.15],
    "win_rate": 0.714, "win_rate_ci": [0.66, 0.75], "kl": 8.12, "n": 200, "left_out": 0, "verdict": "better",
    "mean_length": 30.0, "baseline_mean_length": 29.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.12"), (-0.5, "−0.50"), (12.34, "12.3"), (1234.5, "1,234"), (3.0, "3"), (None, "–"), (0.0012, "1.2e−3"),
     (float("nan"), "–"), (0.0, "0")],
)  # fmt: skip
def test_number(value, text):
    assert words.number(value) == text


def test_number_never_says_minus_zero():
    assert words.number(-0.001, 2) == "0.00"
    assert words.number(-0.001, 2, signed=True) == "0.00"


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.12, [0.09, 0.15], "+0.12 [0.09, 0.15]"),
        (1.5, None, "+1.50"),
        (0.02, [0.001, 0.04], "+0.020 [0.001, 0.040]"),  # better, so the low end must not read as zero
        (-0.004, [-0.005, -0.003], "−0.004 [−0.005, −0.003]"),
        (0.0, [0.0, 0.0], "0.00 [0.00, 0.00]"),
    ],
)
def test_estimate(value, interval, text):
    assert words.estimate(value, interval, signed=True) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (41, "41 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (None, "–"),
        (59.7, "1 min"),
    ],
)
def test_duration(seconds, text):
    assert words.duration(seconds) == text


def test_verdict_sentences():
    better = words.comparison_statement(ROW, "sft")
    assert (
        better.text
        == "DPO is better than SFT on gold: +0.12 [0.09, 0.15], wins 71% [66%, 75%] of pairs; KL to SFT 8.12 nats."
    )
    worse = words.comparison_statement(
        {**ROW, "verdict": "worse", "policy": "sft", "baseline": "base", "judge": "reward"}
    )
    assert worse.text.startswith("SFT is worse than the base model on the reward model: ")
    same = words.comparison_statement({**ROW, "verdict": "no difference", "difference_ci": [-0.01, 0.2], "kl": None})
    assert (
        same.text
        == "No difference shown between DPO and SFT on gold: +0.12 [−0.01, 0.20], wins 71% [66%, 75%] of pairs."
    )


def test_too_few_prompts_and_none_are_said():
    few = words.comparison_statement({**ROW, "n": 3, "verdict": "no difference", "kl": None})
    assert few.text.endswith("; 3 prompts cannot show one.")
    none = words.comparison_statement({**ROW, "n": 0, "verdict": "no difference", "mean_difference": None})
    assert none.text == "No difference shown between DPO and SFT on gold: no prompt has a score on both sides."


@pytest.mark.parametrize(
    ("interval", "kind", "start"),
    [
        ([0.6, 0.8], "better", "The reward model is better than choosing by length alone: "),
        ([0.5, 0.8], "no difference", "No difference shown between the reward model and choosing by length alone: "),
        ([0.55, 0.8], "no difference", "No difference shown"),
        ([0.3, 0.5], "worse", "The reward model is worse"),
    ],
)
def test_reward_model_beside_the_ruler(interval, kind, start):
    metrics = {
        "accuracy": 0.7,
        "accuracy_ci": interval,
        "length_baseline": 0.55,
        "length_baseline_ci": [0.5, 0.6],
        "n": 350,
    }
    statement = words.reward_statement(metrics)
    assert statement.kind == kind
    assert statement.text.startswith(start)
    assert "of 350 held-out pairs, length in 55% [50%, 60%]." in statement.text
    assert words.reward_statement({}) is None


def _report(**changes):
    report = {
        "comparisons": [ROW],
        "policies": [],
        "evaluation": {"max_new_tokens": 64, "parents": {"dpo": "sft"}},
        "stages": {},
    }
    return {**report, **changes}


def test_the_verdict_a_reader_came_for_stands_first():
    pairs = [
        ("sft", "base", "reward"),
        ("sft", "base", "gold"),
        ("dpo", "base", "gold"),
        ("dpo", "sft", "reward"),
        ("dpo", "sft", "gold"),
    ]
    rows = [{**ROW, "policy": policy, "baseline": baseline, "judge": judge} for policy, baseline, judge in pairs]
    policies = [{"policy": name, "kl_reference": None} for name in ("base", "sft", "dpo")]
    evaluation = {"parents": {"sft": "base", "dpo": "sft"}}
    found = words.verdicts(_report(comparisons=rows, policies=policies, evaluation=evaluation))
    starts = ["DPO is better than SFT on gold",
              "DPO is better than SFT on the r", "SFT is better than the base model on g",
              "SFT is better than the base model on the r", "DPO is better than the base model on gold"]  # fmt: skip
    assert [verdict.startswith(start) for verdict, start in zip(found, starts, strict=True)] == [True] * 5


def test_notices():
    assert words.notices(_report()) == []
    assert words.notices(_report(comparisons=[{**ROW, "left_out": 1, "n": 199}])) == [
        "DPO against SFT on gold: 1 prompt of 200 left out, one side has no score."
    ]
    assert "83% longer than those of SFT" in words.notices(_report(comparisons=[{**ROW, "mean_length": 53.0}]))[0]
    cut = {"policy": "base", "finished": {"mean": 0.6}}
    assert words.notices(_report(policies=[cut])) == [
        "Base: 40% of replies did not end by 64 tokens; their lengths are understated."
    ]
    assert words.notices(_report(stages={"sft": {"loss": 2.0, "loss_before": 1.5}})) == [
        "SFT: held-out loss did not fall (1.500 to 2.000)."
    ]
    rows = {"read": 100, "trained": 60, "eos_lost": 9, "dropped": {"empty side": 15, "duplicate": 25}}
    lost, dropped = words.notices(_report(stages={"sft": {"rows": {"demonstrations": rows}}}))
    assert lost.startswith("SFT: 9 rows of demonstrations lost the end-of-sequence token")
    assert dropped == "SFT: many of 100 rows of demonstrations were dropped: 15 empty side."


def test_ledger_phrases_account_for_every_row():
    rows = {"read": 100, "trained": 60, "evaluated": 10, "dropped": {"empty side": 5, "duplicate": 25, "identical": 0}}
    phrases = words.ledger_phrases(rows)
    assert phrases == [
        ("read", 100),
        ("dropped: duplicate", 25),
        ("dropped: empty side", 5),
        ("to evaluate on", 10),
        ("trained", 60),
    ]
    assert phrases[0][1] == sum(n for _, n in phrases[1:])
