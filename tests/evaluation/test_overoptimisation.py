"""The checkpoint judge against the proxy, by hand."""

import math

import numpy as np
import pytest

from rlhf.evaluation.overoptimisation import as_rows, judge_trend, peak, point, scored_everywhere, warning

PROMPTS = np.arange(20.0)


def run(*levels, proxy=None):
    """Points of a run, and its scores by the checkpoint judge, which have these means over alike prompts."""
    judge_P = [level + 0.01 * PROMPTS for level in levels]
    proxies = [None] * len(levels) if proxy is None else [level + 0 * PROMPTS for level in proxy]
    points = [
        point(10 * at, 0 * PROMPTS + at, 0 * PROMPTS + 5, judge, of)
        for at, (judge, of) in enumerate(zip(judge_P, proxies, strict=True))
    ]
    return points, judge_P


def test_the_peak_is_the_best_checkpoint_and_never_the_start():
    assert peak(run(0.0, 1.0, 2.0, 1.5)[1]) == 2
    assert peak(run(9.0, 1.0, 2.0)[1]) == 2, "the start is no checkpoint"
    assert peak(run(0.0, 2.0, 2.0, 1.0)[1]) == 1, "of equals the earlier, which has moved less"
    assert peak([scores[:5] for scores in run(0.0, 2.0, 1.0)[1]]) == 2, "five prompts show nothing: the last"


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((0.0, 1.0, 2.0), "held"),
        ((0.0, 2.0, 1.0), "turned down"),
        ((3.0, 1.0, 2.0), "below the start"),
    ],
)
def test_how_the_score_went(levels, expected):
    points, judge_P = run(*levels)
    assert judge_trend(judge_P) == expected
    assert judge_trend([scores[:5] for scores in judge_P]) == "unknown"
    assert (warning(points, judge_P) is None) == (expected == "held")


def test_a_turn_is_told_with_the_proxy_where_that_rose_meanwhile():
    rising, falling = (warning(*run(0.0, 2.0, 1.0, proxy=proxy)) for proxy in ([0.0, 1.0, 3.0], [0.0, 3.0, 1.0]))
    assert len(rising) > len(falling)
    assert rising.startswith(falling)


def test_noise_is_called_over_optimisation_in_few_runs():
    """Ten checkpoints that are alike: the best is above the last by chance, in nearly all runs."""
    draw = np.random.default_rng(0)
    called = 0
    for _ in range(100):
        called += judge_trend([draw.normal(size=64) for _ in range(11)]) == "turned down"
    assert called <= 5


def test_only_prompts_that_every_checkpoint_has_a_score_on_are_compared():
    """The second checkpoint was scored on the easy half alone: its plain mean would be the highest."""
    hard, easy = np.zeros(8), np.full(8, 10.0)
    judge_P = [np.r_[hard, easy], np.r_[hard + 1, easy + 1], np.r_[np.full(8, math.nan), easy + 0.5]]
    counts_P = scored_everywhere(judge_P)
    assert counts_P.tolist() == [False] * 8 + [True] * 8
    assert peak([scores[counts_P] for scores in judge_P]) == 1


def test_what_has_no_score_is_null_and_not_a_number_that_is_none():
    empty = np.array([])
    empty_point = point(0, empty, empty, empty, None)
    assert (empty_point["checkpoint_judge"], empty_point["checkpoint_judge_ci"], empty_point["proxy"]) == (
        None,
        None,
        None,
    )
    assert judge_trend([empty, empty]) == "unknown"
    assert "scores 0 prompts" in warning([empty_point, empty_point], [empty, empty])


def test_a_line_of_the_file_has_each_prompts_values():
    points, judge_P = run(0.0, 1.0)
    rows = as_rows(points, judge=judge_P, proxy=[])
    assert rows[1]["step"] == 10
    assert rows[1]["prompts"] == {"judge": pytest.approx(judge_P[1])}


def test_a_prompt_without_a_score_is_null_in_the_file():
    points, _ = run(0.0, 1.0)
    rows = as_rows(points, judge=[np.array([1.0, math.nan]), np.array([math.inf, 2.0])])
    assert [row["prompts"]["judge"] for row in rows] == [[1.0, None], [None, 2.0]]
