"""Gold against proxy, by hand."""

import math

import numpy as np
import pytest

from rlhf.evaluation.overoptimisation import as_rows, peak, point, scored_everywhere, warning

PROMPTS = np.arange(20.0)


def run(*levels, proxy=None):
    """Points and gold scores of a run whose checkpoints have these mean gold scores over alike prompts."""
    gold_P = [level + 0.01 * PROMPTS for level in levels]
    proxies = [None] * len(levels) if proxy is None else [one + 0 * PROMPTS for one in proxy]
    points = [
        point(10 * at, 0 * PROMPTS + at, 0 * PROMPTS + 5, gold, of)
        for at, (gold, of) in enumerate(zip(gold_P, proxies, strict=True))
    ]
    return points, gold_P


def test_the_peak_is_the_best_checkpoint_and_never_the_start():
    assert peak(run(0.0, 1.0, 2.0, 1.5)[1]) == 2
    assert peak(run(9.0, 1.0, 2.0)[1]) == 2, "the start is no checkpoint"
    assert peak(run(0.0, 2.0, 2.0, 1.0)[1]) == 1, "of equals the earlier, which has moved less"
    assert peak([one[:5] for one in run(0.0, 2.0, 1.0)[1]]) == 2, "five prompts show nothing: the last"


def test_a_turn_is_said_with_what_rose_meanwhile():
    points, gold_P = run(0.0, 2.0, 1.0, proxy=[0.0, 1.0, 3.0])
    said = warning(points, gold_P)
    assert said.startswith("over-optimised: the gold score turned down after step 10 (KL 1.0 nats)")
    assert said.endswith("while what was maximised rose from 1 to 3")
    falling, gold_P = run(0.0, 2.0, 1.0, proxy=[0.0, 3.0, 1.0])
    assert "rose" not in warning(falling, gold_P)


def test_a_run_that_rises_to_its_end_needs_no_warning():
    assert warning(*run(0.0, 1.0, 2.0)) is None


def test_a_run_that_never_reaches_its_start_is_named():
    assert warning(*run(3.0, 1.0, 2.0)).startswith("no checkpoint reaches the gold score that training started from")


def test_noise_is_called_over_optimisation_in_few_runs():
    """Ten checkpoints that are alike: the best is above the last by chance, in nearly all runs."""
    draw = np.random.default_rng(0)
    called = 0
    for _ in range(100):
        gold_P = [draw.normal(size=64) for _ in range(11)]
        points = [point(at, PROMPTS, PROMPTS, gold, None) for at, gold in enumerate(gold_P)]
        called += "over-optimised" in (warning(points, gold_P) or "")
    assert called <= 5


def test_only_prompts_that_every_checkpoint_has_a_score_on_are_compared():
    """The second checkpoint was scored on the easy half alone: its plain mean would be the highest."""
    hard, easy = np.zeros(8), np.full(8, 10.0)
    gold_P = [np.r_[hard, easy], np.r_[hard + 1, easy + 1], np.r_[np.full(8, math.nan), easy + 0.5]]
    counts_P = scored_everywhere(gold_P)
    assert counts_P.tolist() == [False] * 8 + [True] * 8
    assert peak([one[counts_P] for one in gold_P]) == 1


def test_what_has_no_score_is_null_and_not_a_number_that_is_none():
    empty = np.array([])
    found = point(0, empty, empty, empty, None)
    assert (found["gold"], found["gold_ci"], found["proxy"]) == (None, None, None)
    said = warning([found, found], [empty, empty])
    assert said == "the gold judge scores 0 prompts at every checkpoint: too few to choose by, the last is kept"


def test_a_line_of_the_file_has_each_prompts_values():
    points, gold_P = run(0.0, 1.0)
    rows = as_rows(points, gold=gold_P, proxy=[])
    assert rows[1]["step"] == 10
    assert rows[1]["prompts"] == {"gold": pytest.approx(gold_P[1])}


def test_a_prompt_without_a_score_is_null_in_the_file():
    points, _ = run(0.0, 1.0)
    rows = as_rows(points, gold=[np.array([1.0, math.nan]), np.array([math.inf, 2.0])])
    assert [row["prompts"]["gold"] for row in rows] == [[1.0, None], [None, 2.0]]
