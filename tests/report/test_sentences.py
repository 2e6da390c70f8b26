from __future__ import annotations

import pytest

from rlhf.report import phrases, sentences

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
    assert sentences.number(value) == text


def test_number_never_says_minus_zero():
    assert sentences.number(-0.001, 2) == "0.00"
    assert sentences.number(-0.001, 2, signed=True) == "0.00"


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
    assert sentences.estimate(value, interval, signed=True) == text


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
    assert sentences.duration(seconds) == text


def test_verdict_sentences():
    better = sentences.comparison_statement(ROW, "sft")
    assert (
        better.text
        == "DPO is better than SFT on gold: +0.12 [0.09, 0.15], wins 71% [66%, 75%] of pairs; KL to SFT 8.12 nats."
    )
    worse = sentences.comparison_statement(
        {**ROW, "verdict": "worse", "policy": "sft", "baseline": "base", "judge": "reward"}
    )
    assert worse.text.startswith("SFT is worse than the base model on the reward model: ")
    same = sentences.comparison_statement(
        {**ROW, "verdict": "no difference", "difference_ci": [-0.01, 0.2], "kl": None}
    )
    assert (
        same.text
        == "No difference shown between DPO and SFT on gold: +0.12 [−0.01, 0.20], wins 71% [66%, 75%] of pairs."
    )


def test_too_few_prompts_and_none_are_said():
    few = sentences.comparison_statement({**ROW, "n": 3, "verdict": "no difference", "kl": None})
    assert few.text.endswith("; 3 prompts cannot show one.")
    none = sentences.comparison_statement({**ROW, "n": 0, "verdict": "no difference", "mean_difference": None})
    assert none.text == "No difference shown between DPO and SFT on gold: no prompt has a score on both sides."


@pytest.mark.parametrize(
    ("interval", "kind", "start"),
    [
        ([0.6, 0.8], "better", "The reward model is better than choosing by length alone: "),
        ([0.5, 0.8], "no difference", "No difference shown between the reward model and choosing by length alone: "),
        ([0.55, 0.8], "no difference", "No difference shown"),
        ([0.3, 0.5], "worse", "The reward model is worse than choosing by length alone"),
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
    statement = sentences.reward_statement(metrics)
    assert statement.kind == kind
    assert statement.text.startswith(start)
    assert "of 350 held-out pairs, length in 55% [50%, 60%], chance in 50%." in statement.text
    assert sentences.reward_statement({}) is None


@pytest.mark.parametrize(
    ("interval", "kind", "finding"),
    [
        ([0.38, 0.49], "worse", "The reward model is worse than chance"),
        ([0.45, 0.55], "no difference", "No difference shown between the reward model and chance"),
        ([0.55, 0.65], "better", "The reward model is better than choosing by length alone"),
    ],
)
def test_a_ruler_below_chance_is_no_bar(interval, kind, finding):
    """The ruler is right in 30%: to be right in 44% is no feat."""
    metrics = {"accuracy": sum(interval) / 2, "accuracy_ci": interval, "length_baseline": 0.3, "n": 300}
    assert sentences.reward_statement(metrics)[:2] == (kind, finding)


def test_a_judge_that_is_not_shown_to_be_right_gives_no_plain_verdict():
    doubted = {**ROW, "judge": "reward", "doubted": True, "kl": None}
    statement = sentences.comparison_statement(doubted)
    assert statement.kind == sentences.shown_verdict(doubted) == "doubtful"
    assert statement.finding == (
        "DPO scores higher than SFT on the reward model, which is not shown to tell better replies from worse"
    )
    assert sentences.seed_statement({**SEEDS, "doubted": True, "verdict": "worse"}).finding.startswith(
        "Over 3 seeds DPO scores lower than SFT on gold, which is not"
    )
    same = {**doubted, "verdict": "no difference"}
    assert sentences.comparison_statement(same).kind == sentences.shown_verdict(same) == "no difference"
    stages = {"reward": {"accuracy": 0.44, "accuracy_ci": [0.38, 0.5], "length_baseline": 0.4}}
    (notice,) = sentences.notices(_report(comparisons=[doubted], stages=stages))
    assert notice.startswith(
        "The reward model is not shown to be right more often than chance and length are (right in 44%"
    )


def test_checkpoints_chosen_on_trained_prompts_are_said_to_be():
    assert "trained on" in sentences.notices(_report(stages={"ppo": {"tracked_on": "train"}}))[0]
    assert sentences.notices(_report(stages={"ppo": {"tracked_on": "eval"}})) == []


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
    found = sentences.verdicts(_report(comparisons=rows, policies=policies, evaluation=evaluation))
    starts = ["DPO is better than SFT on gold",
              "DPO is better than SFT on the r", "SFT is better than the base model on g",
              "SFT is better than the base model on the r", "DPO is better than the base model on gold"]  # fmt: skip
    assert [verdict.startswith(start) for verdict, start in zip(found, starts, strict=True)] == [True] * 5


def test_notices():
    assert sentences.notices(_report()) == []
    assert sentences.notices(_report(comparisons=[{**ROW, "left_out": 1, "n": 199}])) == [
        "DPO against SFT on gold: 1 prompt of 200 left out, one side has no score."
    ]
    assert "83% longer than those of SFT" in sentences.notices(_report(comparisons=[{**ROW, "mean_length": 53.0}]))[0]
    cut = {"policy": "base", "finished": {"mean": 0.6}}
    assert sentences.notices(_report(policies=[cut])) == [
        "Base: 40% of replies did not end by 64 tokens; their lengths are understated."
    ]
    assert sentences.notices(_report(stages={"sft": {"loss": 2.0, "loss_before": 1.5}})) == [
        "SFT: held-out loss did not fall (1.500 to 2.000)."
    ]
    rows = {"read": 100, "trained": 60, "eos_lost": 9, "dropped": {"empty side": 15, "duplicate": 25}}
    lost, dropped = sentences.notices(_report(stages={"sft": {"rows": {"demonstrations": rows}}}))
    assert lost.startswith("SFT: 9 rows of demonstrations lost the end-of-sequence token")
    assert dropped == "SFT: many of 100 rows of demonstrations were dropped: 15 empty side."


def test_ledger_phrases_account_for_every_row():
    rows = {"read": 100, "trained": 60, "evaluated": 10, "dropped": {"empty side": 5, "duplicate": 25, "identical": 0}}
    phrases = sentences.ledger_phrases(rows)
    assert phrases == [
        ("read", 100),
        ("dropped: duplicate", 25),
        ("dropped: empty side", 5),
        ("to evaluate on", 10),
        ("trained", 60),
    ]
    assert phrases[0][1] == sum(n for _, n in phrases[1:])


def _gate(passed: bool) -> dict:
    return {"passed": passed, "accuracy": 0.7, "accuracy_ci": [0.6, 0.8], "length_baseline": 0.55, "n": 350,
            "length_baseline_ci": [0.5, 0.6], "reasons": [] if passed else ["it ranks too few rightly"],
            "notes": []}  # fmt: skip


def test_a_difference_that_may_be_chance_among_many_is_said():
    row = {**ROW, "verdict": "no difference", "corrected": True, "n_comparisons": 12, "kl": None}
    assert sentences.comparison_statement(row).text == (
        "No difference shown between DPO and SFT on gold: +0.12 [0.09, 0.15], wins 71% [66%, 75%] of pairs; the "
        "interval alone excludes zero; after correction for 12 comparisons it may be chance."
    )
    assert "correction" not in sentences.comparison_statement({**row, "corrected": False}).text


def test_a_stage_behind_a_shut_gate_is_an_alarm_before_all_verdicts():
    stages = {"gate": {"passed": False, "models": {"reward": _gate(False), "other": _gate(True)}}, "ppo": {}}
    alarm, *_, shut, passed = sentences.statements(_report(stages=stages))
    assert alarm.kind == shut.kind == "alarm"
    assert alarm.text == (
        "PPO maximised a reward model that did not pass the gate: what it gained on the reward model need not be "
        "a gain."
    )
    assert shut.text == "The reward model did not pass the gate: it ranks too few rightly."
    assert passed.text == (
        "The reward model other passed the gate: it ranks 70% [60%, 80%] of 350 held-out pairs rightly, length alone "
        "55% [50%, 60%], chance 50%."
    )
    stopped = sentences.statements(_report(stages={"gate": stages["gate"]}))
    assert not any("maximised" in one.text for one in stopped)
    opened = {"gate": {"passed": True, "models": {"reward": _gate(True)}}, "ppo": {}}
    assert not any(one.kind == "alarm" for one in sentences.statements(_report(stages=opened)))


def test_the_gate_speaks_for_the_reward_model():
    stages = {"reward": {"accuracy": 0.7, "accuracy_ci": [0.6, 0.8], "length_baseline": 0.55},
              "gate": {"passed": True, "models": {"reward": _gate(True)}}}  # fmt: skip
    texts = sentences.verdicts(_report(comparisons=[], stages=stages))
    assert [text.startswith("The reward model passed the gate") for text in texts] == [True]


def test_over_optimisation_is_an_alarm_with_the_step_that_was_kept():
    points = [{"step": 0}, {"step": 20}, {"step": 40}]
    metrics = {
        "tracked": points,
        "selected_step": 20,
        "overoptimised": "over-optimised: gold turned down after step 20",
    }
    statement = sentences.tracked_statement("ppo", metrics)
    assert statement.kind == "alarm"
    assert statement.text == "PPO was over-optimised: gold turned down after step 20; step 20 was kept."
    last = sentences.tracked_statement(
        "dpo", {**metrics, "selected_step": 40, "overoptimised": "no checkpoint reaches it"}
    )
    assert last.text == "DPO: no checkpoint reaches it."
    assert sentences.tracked_statement("dpo", {"tracked": points, "overoptimised": None}) is None


SEEDS = {"policy": "dpo", "baseline": "sft", "judge": "gold", "n_seeds": 3, "mean": 0.5, "std": 0.3, "min": 0.2,
         "max": 0.8, "ci": [0.1, 0.9], "win_rate": 0.62, "verdict": "better"}  # fmt: skip


def test_several_seeds_are_spoken_of_together():
    assert sentences.seed_statement(SEEDS).text == (
        "Over 3 seeds DPO is better than SFT on gold: +0.50 [0.10, 0.90], single seeds from +0.20 to +0.80 (standard "
        "deviation 0.30), wins 62% of pairs."
    )
    chance = sentences.seed_statement({**SEEDS, "verdict": "no difference", "corrected": True, "n_comparisons": 12})
    assert chance.text.endswith(
        "; the interval alone excludes zero; after correction for 12 comparisons it may be chance."
    )
    two = sentences.seed_statement({**SEEDS, "n_seeds": 2, "ci": None, "verdict": "no difference"})
    assert two.text.startswith("Over 2 seeds no difference shown between DPO and SFT on gold: +0.50, single")
    assert two.text.endswith("; 2 seeds cannot show one.")
    rows = [{**ROW, "policy": name} for name in ("dpo", "dpo@1", "dpo@2")]
    assert [one[:12] for one in sentences.verdicts(_report(comparisons=rows, seeds=[SEEDS]))] == ["Over 3 seeds"]
    assert len(sentences.verdicts(_report(comparisons=rows, seeds=[{**SEEDS, "judge": "other"}]))) == 4


def _lost(policy: str, baseline: str, verdict: str, **changes) -> dict:
    row = {**ROW, "policy": policy, "baseline": baseline, "judge": "general", "measure": "log-likelihood",
           "verdict": verdict, "baseline_mean": -2.1, "policy_mean": -2.6, "mean_difference": -0.5,
           "difference_ci": [-0.55, -0.45]}  # fmt: skip
    return {**row, **changes}


def test_what_was_lost_is_said_once():
    parents = {"sft": "base", "dpo": "sft"}
    lost = _lost("sft", "base", "worse")
    same = _lost("dpo", "sft", "no difference", mean_difference=-0.01, difference_ci=[-0.05, 0.03])
    after = _lost("dpo", "base", "worse")
    report = _report(evaluation={"parents": parents}, retained=[lost, same, after])
    assert [(one.kind, one.text) for one in sentences.retained_statements(report)] == [
        ("worse", "SFT lost on general: log-likelihood −2.10 (the base model) to −2.60 nats a token, −0.50 "
         "[−0.55, −0.45]."),
        ("no difference", "No change shown on general: DPO against SFT −0.01 [−0.05, 0.03]."),
    ]  # fmt: skip
    quiet = {**lost, "verdict": "no difference"}
    texts = [one.text for one in sentences.retained_statements({**report, "retained": [quiet, same, after]})]
    assert texts[0].startswith("DPO lost on general: log-likelihood −2.10 (the base model)")  # by small steps
    won = _lost("sft", "base", "better", measure="score", policy_mean=0.7, baseline_mean=0.6)
    assert sentences.retained_statements({**report, "retained": [won]})[0].text.startswith(
        "SFT gained on general: score 0.60 (the base model) to 0.70, "
    )


def test_notices_of_judges_groups_and_the_gate():
    asked = {"position_bias": 0.3, "both_orders": 1000, "unjudged": 2, "pairs": 1002}
    assert sentences.notices(_report(comparing={"pairs": asked})) == [
        "pairs: in 30% of 1,000 pairs the verdict changed with the order of the replies; such pairs count as ties.",
        "pairs: 2 pairs of 1,002 got no readable verdict.",
    ]
    assert sentences.notices(_report(comparing={"pairs": {**asked, "position_bias": 0.1, "unjudged": 0}})) == []
    group = {**ROW, "group": "refund", "verdict": "worse", "n": 34}
    assert sentences.notices(_report(groups=[group])) == [
        "DPO is worse than SFT on gold in the group “refund” (34 prompts)."
    ]
    assert sentences.notices(_report(groups=[group], comparisons=[{**ROW, "verdict": "worse"}])) == []
    gate = {"models": {"reward": {**_gate(True), "notes": ["its confidence is off by 12%"]}}}
    assert sentences.notices(_report(stages={"gate": gate})) == ["The reward model: its confidence is off by 12%."]


def test_labels_of_seeds_and_lists():
    assert (sentences.label("dpo base"), sentences.in_sentence("dpo base")) == ("DPO base", "DPO's own base model")
    assert [sentences.label(name) for name in ("dpo@2", "ppo", "mine", "mine@1")] == ["DPO@2", "PPO", "mine", "mine@1"]
    assert [phrases.listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert sentences.percent(-0.2, [-0.3, 0.1]) == "−20% [−30%, 10%]"
