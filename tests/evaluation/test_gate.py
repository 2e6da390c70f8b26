"""The decision on a reward model, by hand."""

import numpy as np
import pytest

from rlhf.data.records import Preference
from rlhf.evaluation.gate import advise, find_failures, find_notes, needed_of_such, pairs_needed, verdict
from rlhf.evaluation.reward_model import Pairs, distribution, examine, invariance
from rlhf.evaluation.stats import wilson_interval


def measures(**changes):
    return {
        "n": 400, "prompts": 400, "n_effective": 400, "unscored": 0,
        "accuracy": 0.7, "accuracy_ci": [0.65, 0.74], "length_baseline": 0.55, "prefers_longer": 0.55,
        "ece": 0.03, "invariance": {"batch": 1e-6, "eos": 0.0},
        "scores": {name: {"mean": 1.0, "std": 1.0} for name in ("chosen", "rejected", "policy")},
        **changes,
    }  # fmt: skip


def failures(**changes) -> list[str]:
    return [failure.id for failure in find_failures(measures(**changes))]


def advice(**changes) -> list[str]:
    measured = measures(**changes)
    return [remark.id for failure in find_failures(measured) for remark in advise(failure, measured)]


def notes(**changes) -> list[str]:
    return [note.id for note in find_notes(measures(**changes))]


def test_the_lower_end_has_to_beat_length_and_chance():
    assert verdict(measures())["passed"]
    assert failures(length_baseline=0.66) == ["accuracy"]
    assert failures(accuracy=0.52, accuracy_ci=[0.49, 0.55], length_baseline=0.4) == ["accuracy"]
    assert verdict(measures(length_baseline=0.4))["baseline"] == 0.5


def test_a_decision_has_the_words_of_its_failures():
    closed = verdict(measures(length_baseline=0.66, ece=0.2))
    assert not closed["passed"]
    assert [len(closed[name]) for name in ("reasons", "advice", "notes")] == [1, 1, 1]


def test_advice_is_for_the_symptom():
    assert advice() == []
    assert advice(length_baseline=0.7, prefers_longer=0.95) == ["length"]
    few = {"n": 40, "n_effective": 40, "prompts": 40, "accuracy_ci": [0.55, 0.82]}
    assert advice(**few, length_baseline=0.6) == ["more pairs"]
    assert advice(accuracy=0.5, accuracy_ci=[0.45, 0.55]) == ["labels", "pairs first", "training"]
    assert advice(unscored=3) == ["pairs first"]
    assert advice(invariance={"batch": 0.3, "eos": 0.0}) == ["padding"]


def test_a_score_that_moves_with_the_rest_of_the_batch_is_refused():
    assert failures(invariance={"batch": 0.3, "eos": 0.0}) == ["batch"]


@pytest.mark.parametrize("batch", [None, float("nan")])
def test_a_score_that_cannot_be_compared_with_itself_is_refused(batch):
    """NaN > tolerance is false."""
    assert failures(invariance={"batch": batch, "eos": None}) == ["batch unknown"]


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_a_completion_without_a_score_shuts_the_gate(missing):
    """Right in all pairs that it scores, and mute in one of a hundred."""
    scores_M2 = np.tile([1.0, 0.0], (200, 1))
    scores_M2[:2, 1], scores_M2[2] = missing, missing
    records = [Preference(f"p{number}", "a", "b") for number in range(200)]
    measured = examine(scores_M2, Pairs(records, np.ones(200), -np.ones(200)))
    assert (measured["unscored"], measured["n"]) == (4, 200)
    assert measured["accuracy"] == (197 + 3 / 2) / 200
    assert failures(**measured) == ["unscored"]
    mute = examine(np.full((200, 2), missing), Pairs(records, np.ones(200), -np.ones(200)))
    scores = distribution({"chosen": np.full(3, missing), "policy": np.ones(3)})
    assert not verdict(measures(**mute, scores=scores))["passed"]


@pytest.mark.parametrize("broken", [lambda number, alone: number == 3, lambda number, alone: number == 3 and alone])
def test_invariance_is_measured_where_there_are_scores(broken):
    records = [Preference("p", str(number), "b") for number in range(6)]

    def judge(prompts, completions):
        alone = len(completions) == 1
        return [None if broken(int(text), alone) else float(text) for text in completions]

    moved = invariance(judge, records, 1.0)["batch"]
    assert moved == (None if broken(3, True) and not broken(3, False) else 0.0)
    assert invariance(lambda prompts, completions: [None] * len(completions), records, 0.0)["batch"] is None


def test_pairs_of_one_prompt_are_not_counted_as_so_many():
    fields = {"accuracy_ci": [0.5, 0.8], "length_baseline": 0.67}
    apart, together = (needed_of_such(measures(**fields, n_effective=count)) for count in (400, 300))
    assert together == pytest.approx(apart * 4 / 3, abs=1)
    assert needed_of_such(measures(**fields, n_effective=0)) is None


def test_what_does_not_stop_a_run_is_noted():
    means = {"chosen": 1, "rejected": 0, "policy": 9}
    assert notes(scores={name: {"mean": mean, "std": 1.0} for name, mean in means.items()}) == ["far"]
    assert notes(invariance={"batch": 0.0, "eos": 0.9}) == ["end token"]
    assert notes(ece=0.2) == ["calibration"]
    assert notes() == []


@pytest.mark.parametrize(("accuracy", "baseline"), [(0.6, 0.5), (0.7, 0.65), (0.99, 0.5)])
def test_so_many_pairs_are_needed_and_no_fewer(accuracy, baseline):
    count = pairs_needed(accuracy, baseline)
    assert wilson_interval(accuracy * count, count)[0] > baseline
    assert wilson_interval(accuracy * (count - 1), count - 1)[0] <= baseline
    assert pairs_needed(baseline, baseline) is None


def test_accuracy_counts_ties_half_and_the_length_baseline_learns_its_side_in_training():
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
