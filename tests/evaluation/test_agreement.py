"""Agreement: numbers by hand."""

import pytest

from rlhf.evaluation.agreement import annotator_agreement, judge_agreement
from tests.support.votes import vote


def panel(**answers):
    """Votes of annotators, each a word of letters: f(irst), s(econd), t(ie), n(either), `-` for none."""
    words = {"f": "first", "s": "second", "t": "tie", "n": "neither", "k": "skip"}
    return [
        vote(words[letter], comparison=number, annotator=name)
        for name, letters in answers.items()
        for number, letter in enumerate(letters)
        if letter != "-"
    ]


def test_kappa_of_two_annotators():
    # agree on 6 of 8; both say first in 4 of 8: chance is 1/2, kappa = (0.75 - 0.5) / 0.5
    agreement = annotator_agreement(panel(ann="ffffssss", bo="fffssssf"))
    (pair,) = agreement["pairs"]
    assert pair == {"annotators": ["ann", "bo"], "kappa": pytest.approx(0.5), "comparisons": 8}
    assert agreement["fleiss"] == pytest.approx(0.5)
    # observed disagreement 2/8; expected 1 - (8*7 + 8*7) / (16*15) = 8/15
    assert agreement["alpha"] == pytest.approx(1 - (2 / 8) / (8 / 15))


def test_perfect_agreement_is_one():
    agreement = annotator_agreement(panel(ann="fstn", bo="fstn", cy="fstn"))
    assert agreement["fleiss"] == agreement["alpha"] == pytest.approx(1)
    assert [pair["kappa"] for pair in agreement["pairs"]] == [1.0, 1.0, 1.0]


def test_skipped_comparisons_say_nothing():
    agreement = annotator_agreement(panel(ann="fsk", bo="fsf", cy="--f"))
    assert agreement["comparisons"] == 3
    assert [(pair["annotators"], pair["comparisons"]) for pair in agreement["pairs"]] == [
        (["ann", "bo"], 2),
        (["bo", "cy"], 1),
    ]


def test_fleiss_takes_comparisons_with_equally_many_votes():
    agreement = annotator_agreement(panel(ann="fsfs", bo="fsff", cy="f---"))
    assert (agreement["fleiss_comparisons"], agreement["fleiss_votes"]) == (3, 2)


def test_nothing_to_agree_on():
    alone = annotator_agreement(panel(ann="fs"))
    assert alone["fleiss"] is alone["alpha"] is None
    assert alone["comparisons"] == 0
    same = annotator_agreement(panel(ann="ff", bo="ff"))
    assert same["pairs"][0]["kappa"] is same["fleiss"] is same["alpha"] is None


def test_a_judge_agrees_with_the_preferred_side():
    votes = [
        vote("first", prompt="x", scores=({"gold": 2.0}, {"gold": 1.0})),
        vote("second", prompt="x", scores=({"gold": 2.0}, {"gold": 1.0})),
        vote("second", prompt="y", scores=({"gold": 0.0}, {"gold": 3.0})),
        vote("first", prompt="z", scores=({"gold": 1.0}, {"gold": 1.0})),
        vote("tie", prompt="w", scores=({"gold": 1.0}, {"gold": 0.0})),
        vote("first", prompt="v", scores=({"gold": None}, {"gold": 0.0})),
        vote("first", prompt="u", scores=({"gold": 1.0, "other": 0.0}, {"gold": 0.0, "other": 1.0})),
    ]
    gold, other = judge_agreement(votes)
    assert (gold["judge"], gold["votes"], gold["prompts"]) == ("gold", 5, 4)
    assert gold["rate"] == pytest.approx((0.5 + 1 + 0.5 + 1) / 4)
    assert (other["judge"], other["rate"], other["rate_ci"]) == ("other", 0.0, None)
