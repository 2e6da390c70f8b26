"""The decision on a reward model, by hand."""

import numpy as np
import pytest

from rlhf.data.records import Preference
from rlhf.evaluation.gate import Pairs, distribution, examine, invariance
from rlhf.evaluation.gate_verdict import pairs_needed, unproven, verdict
from rlhf.evaluation.stats import wilson_interval


def found(**changes):
    return {
        "n": 400, "prompts": 400, "n_effective": 400, "unscored": 0,
        "accuracy": 0.7, "accuracy_ci": [0.65, 0.74], "length_baseline": 0.55, "prefers_longer": 0.55,
        "ece": 0.03, "invariance": {"batch": 1e-6, "eos": 0.0},
        "scores": {name: {"mean": 1.0, "std": 1.0} for name in ("chosen", "rejected", "policy")},
        **changes,
    }  # fmt: skip


def test_the_lower_end_has_to_beat_the_ruler_and_chance():
    assert verdict(found())["passed"]
    assert not verdict(found(length_baseline=0.66))["passed"]
    assert not verdict(found(accuracy=0.52, accuracy_ci=[0.49, 0.55], length_baseline=0.4))["passed"]
    assert verdict(found(length_baseline=0.4))["baseline"] == 0.5


def test_advice_is_for_the_symptom():
    follows = verdict(found(length_baseline=0.7, prefers_longer=0.95))
    assert "prefers the longer reply in 95%" in follows["advice"][0]
    few = verdict(found(n=40, n_effective=40, prompts=40, accuracy_ci=[0.55, 0.82], length_baseline=0.6))
    assert few["advice"][0].startswith("at this accuracy about ")
    nothing = verdict(found(accuracy=0.5, accuracy_ci=[0.45, 0.55]))
    assert "contradictory" in nothing["advice"][0]


def test_a_score_that_moves_with_its_company_is_refused():
    assert "batch" in verdict(found(invariance={"batch": 0.3, "eos": 0.0}))["reasons"][0]


@pytest.mark.parametrize("batch", [None, float("nan")])
def test_a_score_that_cannot_be_compared_with_itself_is_refused(batch):
    """NaN > tolerance is false."""
    assert "cannot be told" in verdict(found(invariance={"batch": batch, "eos": None}))["reasons"][0]


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_a_reply_without_a_score_shuts_the_gate(missing):
    """Right in all pairs that it scores, and mute in one of a hundred."""
    scores_M2 = np.tile([1.0, 0.0], (200, 1))
    scores_M2[:2, 1], scores_M2[2] = missing, missing
    records = [Preference(f"p{number}", "a", "b") for number in range(200)]
    measured = examine(scores_M2, Pairs(records, np.ones(200), -np.ones(200)))
    assert (measured["unscored"], measured["n"]) == (4, 200)
    assert measured["accuracy"] == (197 + 3 / 2) / 200
    answer = verdict(found(**measured))
    assert answer["reasons"] == ["it gives no score to 4 of 400 replies"]
    assert not answer["passed"]
    mute = examine(np.full((200, 2), missing), Pairs(records, np.ones(200), -np.ones(200)))
    scores = distribution({"chosen": np.full(3, missing), "policy": np.ones(3)})
    assert not verdict(found(**mute, scores=scores))["passed"]


@pytest.mark.parametrize("broken", [lambda number, alone: number == 3, lambda number, alone: number == 3 and alone])
def test_invariance_is_measured_where_there_are_scores(broken):
    records = [Preference("p", str(number), "b") for number in range(6)]

    def judge(prompts, replies):
        return [None if broken(int(reply), len(replies) == 1) else float(reply) for reply in replies]

    moved = invariance(judge, records, 1.0)["batch"]
    assert moved == (None if broken(3, True) and not broken(3, False) else 0.0)
    assert invariance(lambda prompts, replies: [None] * len(replies), records, 0.0)["batch"] is None


def test_pairs_of_one_prompt_are_not_counted_as_so_many():
    apart, together = found(), found(prompts=50, n_effective=100)
    assert "of 400 held-out pairs rightly" in verdict({**apart, "length_baseline": 0.66})["reasons"][0]
    shut = verdict({**together, "accuracy_ci": [0.6, 0.78], "length_baseline": 0.66})
    assert "of 400 held-out pairs (50 prompts) rightly" in shut["reasons"][0]
    few = [verdict(found(accuracy_ci=[0.5, 0.8], length_baseline=0.67, n_effective=count)) for count in (400, 300)]
    needed = [int(one["advice"][0].split("about ")[1].split()[0].replace(",", "")) for one in few]
    assert needed[1] == pytest.approx(needed[0] * 4 / 3, rel=0.05)


def test_what_does_not_stop_a_run_is_noted():
    means = {"chosen": 1, "rejected": 0, "policy": 9}
    far = found(scores={name: {"mean": mean, "std": 1.0} for name, mean in means.items()})
    assert "judges what it has not seen" in verdict(far)["notes"][0]
    assert "second end token" in verdict(found(invariance={"batch": 0.0, "eos": 0.9}))["notes"][0]
    assert verdict(found(ece=0.2))["notes"]
    assert verdict(found())["notes"] == []


@pytest.mark.parametrize(("accuracy", "baseline"), [(0.6, 0.5), (0.7, 0.65), (0.99, 0.5)])
def test_so_many_pairs_are_needed_and_no_fewer(accuracy, baseline):
    count = pairs_needed(accuracy, baseline)
    assert wilson_interval(accuracy * count, count)[0] > baseline
    assert wilson_interval(accuracy * (count - 1), count - 1)[0] <= baseline
    assert pairs_needed(baseline, baseline) is None


def test_accuracy_counts_ties_half_and_the_ruler_learns_its_side_in_training():
    scores_M2 = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0]])
    records = [Preference("p", "a", "b")] * 4
    shorter = Pairs(records, np.array([-3.0, -1.0, 2.0, -5.0]), np.array([-1.0, -2.0, 1.0]))
    measured = examine(scores_M2, shorter)
    assert measured["accuracy"] == 2.5 / 4
    assert measured["length_baseline"] == 3 / 4, "the training pairs say: the shorter one"
    assert measured["prefers_longer"] == 1.5 / 4
    longer = Pairs(records, shorter.length_M, -shorter.train_length_N)
    assert examine(scores_M2, longer)["length_baseline"] == 1 / 4


def test_histograms_share_their_edges():
    two = distribution({"one": np.array([0.0, 1.0]), "other": np.array([4.0, np.nan])})
    assert len(two["edges"]) == len(two["one"]["counts"]) + 1
    assert sum(two["one"]["counts"]) == 2
    assert two["other"]["n"] == 1
    assert two["one"]["quantiles"][2] == 0.5


def test_what_the_gate_found_counts_before_what_the_stage_did():
    """A judge is doubted whose interval does not lie above chance and length."""
    low, high = ({"accuracy": 0.6, "accuracy_ci": ci, "length_baseline": 0.4} for ci in ([0.49, 0.7], [0.51, 0.7]))
    assert list(unproven({"reward": low, "gold": high, "sft": {}})) == ["reward"]
    assert list(unproven({"reward": {**high, "length_baseline": 0.52}})) == ["reward"]
    gate = {"models": {"reward": {"passed": True}, "other": {"passed": False}}}
    assert unproven({"reward": low, "gate": gate}) == {"other": "it did not pass the gate"}
    assert unproven({"reward": {"accuracy": None, "accuracy_ci": None}}) == {}
