"""Which statements and caveats a report has; what they say stands in golden/sentences.txt."""

from __future__ import annotations

import pytest

from rlhf.report.caveats import caveats, unproven
from rlhf.report.names import Names
from rlhf.report.sentences import ledger_phrases, reward_statement, stage_facts, statements
from tests.report import cases
from tests.report.write_golden import GOLDEN, golden


def told(**changes) -> list[tuple]:
    return [(*statement.id, statement.kind) for statement in statements(cases.report(**changes))]


def limits(**changes) -> list[tuple[str, str]]:
    return [(caveat.id, caveat.about) for caveat in caveats(cases.report(**changes))]


def test_every_sentence_is_as_it_was_read_and_approved():
    """After a wanted change: python -m tests.report.write_golden, and read the diff."""
    assert golden() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("interval", "baseline", "kind"),
    [
        ([0.6, 0.8], 0.55, "better"),
        ([0.5, 0.8], 0.55, "no difference"),
        ([0.55, 0.8], 0.55, "no difference"),
        ([0.3, 0.5], 0.55, "worse"),
        ([0.38, 0.49], 0.3, "worse"),
        ([0.45, 0.55], 0.3, "no difference"),  # a baseline below chance is no bar
        ([0.55, 0.65], 0.3, "better"),
    ],
)
def test_reward_model_beside_chance_and_length(interval, baseline, kind):
    stage = {**cases.REWARD, "accuracy_ci": interval, "length_baseline": baseline}
    assert told(comparisons=[], stages={"reward": stage}) == [("reward model", "reward", kind)]


def test_a_reward_model_without_held_out_pairs_has_no_statement():
    assert reward_statement("reward", {"loss": 0.1}, Names.of(cases.report())) is None


def test_the_verdict_a_reader_came_for_stands_first():
    pairs = [("sft", "base", "reward"), ("sft", "base", "helpful"), ("dpo", "base", "helpful"),
             ("dpo", "sft", "reward"), ("dpo", "sft", "helpful")]  # fmt: skip
    rows = [cases.comparison(policy=policy, baseline=baseline, judge=judge) for policy, baseline, judge in pairs]
    order = told(
        comparisons=rows,
        policies=[cases.policy(name) for name in ("base", "sft", "dpo")],
        evaluation={"parents": {"sft": "base", "dpo": "sft"}},
        stages={"reward": {}},
    )
    assert [statement[1:4] for statement in order] == [
        ("dpo", "sft", "helpful"), ("dpo", "sft", "reward"), ("sft", "base", "helpful"), ("sft", "base", "reward"),
        ("dpo", "base", "helpful"),
    ]  # fmt: skip


def test_a_judge_that_is_not_shown_to_be_right_gives_no_plain_verdict():
    row = cases.comparison(judge="reward", doubted=True)
    stages = {"reward": {**cases.REWARD, "accuracy_ci": [0.38, 0.5], "length_baseline": 0.4}}
    assert told(comparisons=[row], stages=stages)[0] == ("comparison", "dpo", "sft", "reward", "doubtful")
    assert limits(comparisons=[row], stages=stages) == [("doubted", "reward")]
    seeds = {**cases.SEEDS, "doubted": True, "verdict": "worse"}
    assert told(comparisons=[], seeds=[seeds]) == [("seeds", "dpo", "sft", "helpful", "doubtful")]


def test_what_the_gate_measured_counts_before_what_the_stage_did():
    """A judge is doubted whose interval does not lie above chance and length."""
    low, high = ({**cases.REWARD, "accuracy_ci": ci, "length_baseline": 0.4} for ci in ([0.49, 0.7], [0.51, 0.7]))

    def doubts(**stages) -> list[str]:
        return list(unproven(cases.report(stages=stages)))

    assert doubts(reward=low, gold_reward=high, sft={}) == ["reward"]
    assert doubts(reward={**high, "length_baseline": 0.52}) == ["reward"]
    gate = {"passed": False, "models": {"reward": cases.GATE, "other": cases.SHUT}}
    assert doubts(reward=low, gate=gate) == ["other"]
    assert doubts(reward={"accuracy": None, "accuracy_ci": None}) == []


def test_a_stage_behind_a_shut_gate_is_an_alarm_before_all_verdicts():
    gate = {"passed": False, "models": {"reward": cases.SHUT, "other": cases.GATE}, "gates": "ppo"}
    assert told(stages={"gate": gate, "ppo": {}, "ppo@1": {}}) == [
        ("shut gate", "ppo", "alarm"), ("shut gate", "ppo@1", "alarm"),
        ("comparison", "dpo", "sft", "helpful", "better"),
        ("gate", "reward", "alarm"), ("gate", "other", "better"),
    ]  # fmt: skip
    assert "shut gate" not in {statement[0] for statement in told(stages={"gate": gate})}
    passed = {"passed": True, "models": {"reward": cases.GATE}, "gates": "ppo"}
    assert "alarm" not in {statement[-1] for statement in told(stages={"gate": passed, "ppo": {}})}


def test_of_several_stages_behind_a_gate_those_are_told_that_maximised_what_it_shut_out():
    gate = {
        "passed": False, "models": {"reward": cases.GATE, "other": cases.SHUT}, "gates": "rank", "also_gates": ["ppo"],
    }  # fmt: skip
    report = cases.report(comparisons=[], stages={"gate": gate, "rank": {}, "ppo": {}})
    report["provenance"]["rank"] = {"label": "Rank", "parents": {"reward": "abc"}}
    report["provenance"]["ppo"] = {"label": "PPO", "parents": {}, "config": {"trainer": {"rewards": {"other": 1.0}}}}
    assert [statement.id for statement in statements(report) if statement.id[0] == "shut gate"] == [
        ("shut gate", "ppo")
    ]


def test_what_was_ranked_is_told_in_facts():
    ranked = {
        "keep": "pairs", "prompts": 10, "kept": 8, "replies": 40, "cut": 0.1, "ties": 0.2,
        "judges": {"gold": {"best": 0.9, "worst": 0.1, "all": 0.5}}, "margin": 0.8,
        "length_best": 12.0, "length_worst": 10.0, "longer": 0.75, "longer_ci": [0.4, 0.93],
    }  # fmt: skip
    facts = stage_facts({"ranked": ranked})
    assert [any(number in fact for fact in facts) for number in ("8 of 10", "0.9", "0.1", "75%", "10%")] == [True] * 5
    assert len(stage_facts({"ranked": {**ranked, "longer": None, "keep": "best"}})) == len(facts) - 1


def test_the_gate_speaks_for_the_reward_model():
    gate = {"passed": True, "models": {"reward": cases.GATE}}
    assert told(comparisons=[], stages={"reward": cases.REWARD, "gate": gate}) == [("gate", "reward", "better")]


def test_over_optimisation_is_an_alarm():
    points = [{"step": 0}, {"step": 20}]
    stages = {"ppo": {"tracked": points, "overoptimised": "over-optimised: it turned"}, "dpo": {"tracked": points}}
    assert told(comparisons=[], stages=stages) == [("tracked", "ppo", "alarm")]


def test_several_seeds_are_spoken_of_together():
    rows = [cases.comparison(policy=name) for name in ("dpo", "dpo@1", "dpo@2")]
    assert [statement[0] for statement in told(comparisons=rows, seeds=[cases.SEEDS])] == ["seeds"]
    other = {**cases.SEEDS, "judge": "other"}
    assert [statement[0] for statement in told(comparisons=rows, seeds=[other])].count("comparison") == 3


def test_a_regression_is_told_once():
    evaluation = {"parents": {"sft": "base", "dpo": "sft"}}
    worse = cases.retained("sft", "base", "worse")
    same = cases.retained("dpo", "sft", "no difference", mean_difference=-0.01, difference_ci=[-0.05, 0.03])
    after = cases.retained("dpo", "base", "worse")

    def changes(*rows) -> list[tuple]:
        return told(comparisons=[], evaluation=evaluation, retained=rows)

    no_change = ("retained", "general", "no difference")
    assert changes(worse, same, after) == [("retained", "general", "sft", "base", "worse"), no_change]
    quiet = {**worse, "verdict": "no difference"}
    by_small_steps = ("retained", "general", "dpo", "base", "worse")
    assert changes(quiet, same, after) == [by_small_steps, no_change]
    better = cases.retained("sft", "base", "better", measure="score")
    assert changes(better) == [("retained", "general", "sft", "base", "better")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"comparisons": [cases.comparison(left_out=1, n=199)]}, [("unscored", "helpful")]),
        ({"comparisons": [cases.comparison(mean_length=53.0)]}, [("longer", "dpo")]),
        ({"comparisons": [cases.comparison(mean_length=53.0, policy="dpo@1")]}, []),
        ({"comparisons": [cases.comparison(mean_length=53.0, baseline="base")]}, []),
        ({"policies": [cases.policy("base", finished={"mean": 0.6})]}, [("unfinished", "base")]),
        ({"policies": [cases.policy("base", finished={"mean": 0.9})]}, []),
        ({"evaluation": {"prompts_cut": 2}}, [("prompts cut", "prompts")]),
        ({"stages": {"sft": {"loss": 2.0, "loss_before": 1.5}}}, [("loss", "sft")]),
        ({"stages": {"sft": {"loss": 1.4, "loss_before": 1.5}}}, []),
        ({"stages": {"sft": {"rows": {"demonstrations": {**cases.ROWS, "eos_lost": 9}}}}},
         [("eos lost", "demonstrations"), ("dropped", "demonstrations")]),
        ({"stages": {"sft": {"rows": {"demonstrations": {"read": 100, "dropped": {"duplicate": 90}}}}}}, []),
        ({"stages": {"ppo": {"tracked_on": "train"}}}, [("tracked on training prompts", "ppo")]),
        ({"stages": {"ppo": {"tracked_on": "eval"}}}, []),
        ({"stages": {"ppo": {"warning": "odd"}}}, [("warning", "ppo")]),
        ({"comparing": {"pairs": cases.JUDGE}}, [("position bias", "pairs"), ("unjudged", "pairs")]),
        ({"comparing": {"pairs": {**cases.JUDGE, "position_bias": 0.1, "unjudged": 0}}}, []),
        ({"groups": [cases.comparison(group="refund", verdict="worse")]}, [("group", "refund")]),
        ({"groups": [cases.comparison(group="refund", verdict="worse")],
          "comparisons": [cases.comparison(verdict="worse")]}, []),
        ({"stages": {"gate": {"passed": True, "models": {"reward": {**cases.GATE, "notes": ["odd"]}}}}},
         [("gate", "reward")]),
    ],
)  # fmt: skip
def test_what_limits_the_verdicts(changes, expected):
    assert limits(**changes) == expected


def test_ledger_phrases_account_for_every_row():
    phrases = ledger_phrases({**cases.ROWS, "dropped": {"empty side": 5, "duplicate": 25, "identical": 0}})
    assert [n for _, n in phrases] == [100, 25, 5, 10, 60]
    assert phrases[0][1] == sum(n for _, n in phrases[1:])


def test_facts_of_a_stage_are_those_it_measured():
    assert [len(stage_facts(stage)) for stage in ({}, {"loss": 1.0, "accuracy": 0.8}, cases.REWARD)] == [0, 2, 2]
