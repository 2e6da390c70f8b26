"""Win rates and ratings: numbers by hand."""

import math

import pytest

from rlhf.evaluation.ratings import Outcome, orders, outcomes, ratings, win_rates
from tests.support.votes import vote


def test_outcomes_of_votes():
    votes = [vote("first"), vote("second"), vote("tie"), vote("neither"), vote("skip"), vote("first", ("sft", "sft"))]
    assert [outcome[:3] for outcome in outcomes(votes)] == [
        ("sft", "dpo", 1.0), ("sft", "dpo", 0.0), ("sft", "dpo", 0.5), ("sft", "dpo", 0.5),
    ]  # fmt: skip


def test_a_prompt_weighs_one_however_many_judge_it():
    judged = [Outcome("a", "b", 1.0, "x")] * 9 + [Outcome("a", "b", 0.0, "y"), Outcome("b", "a", 1.0, "z")]
    forth, back = win_rates(judged)
    assert (forth["policy"], forth["baseline"]) == ("a", "b")
    assert forth["rate"] == pytest.approx((1 + 0 + 0) / 3)
    assert back["rate"] == pytest.approx(1 - forth["rate"])
    assert (forth["votes"], forth["prompts"]) == (11, 3)
    assert forth["rate_ci"][0] < forth["rate"] < forth["rate_ci"][1]


def test_ratings_of_two_policies_are_their_odds():
    judged = [Outcome("a", "b", 1.0, "x")] * 3 + [Outcome("b", "a", 1.0, "y")]
    best, worst = ratings(judged)
    assert (best["policy"], worst["policy"]) == ("a", "b")
    assert best["rating"] - worst["rating"] == pytest.approx(400 * math.log10(3.5 / 1.5), abs=0.01)  # a tie beside
    assert (best["rating"] + worst["rating"]) / 2 == pytest.approx(1000)
    assert (best["votes"], worst["votes"]) == (4, 4)


def test_ratings_chain_policies_that_never_met():
    judged = [Outcome("a", "b", 1.0, "x")] * 30 + [Outcome("b", "c", 1.0, "y")] * 30
    assert [each["policy"] for each in ratings(judged)] == ["a", "b", "c"]


def test_policies_apart_from_the_others_have_no_rating():
    judged = [Outcome("a", "b", 1.0, "x"), Outcome("b", "c", 1.0, "y"), Outcome("u", "v", 1.0, "z")]
    by_name = {each["policy"]: each["rating"] for each in ratings(judged)}
    assert by_name["u"] is by_name["v"] is None
    assert by_name["a"] > by_name["b"] > by_name["c"]


def test_intervals_narrow_with_prompts_and_hold_the_rating():
    def widths(prompts):
        judged = [Outcome("a", "b", float(number % 3 > 0), str(number)) for number in range(prompts)]
        best = ratings(judged)[0]
        low, high = best["rating_ci"]
        assert low < best["rating"] < high
        return high - low

    assert widths(240) < 0.6 * widths(60)


def test_one_prompt_has_no_interval():
    assert ratings([Outcome("a", "b", 1.0, "x")] * 5)[0]["rating_ci"] is None
    assert ratings([]) == win_rates([]) == []


def test_the_reply_shown_first():
    votes = [
        vote("first"),
        vote("first", swapped=True),
        vote("second", swapped=True),
        vote("tie"),
        vote("second", swapped=True),
    ]
    share, interval, count = orders(votes)
    assert (share, count) == (0.75, 4)
    assert interval[0] < 0.75 < interval[1]
    assert orders([vote("tie")])[2] == 0
