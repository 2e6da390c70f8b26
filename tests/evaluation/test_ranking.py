"""Which replies are kept, by hand."""

import math

import pytest

from rlhf.evaluation.ranking import (
    ALL_CUT,
    CLOSE,
    EMPTY,
    LOW,
    NO_SCORE,
    SAME,
    TIE,
    Kept,
    Measures,
    RankSettings,
    choose,
)

NAN = math.nan


def replies(texts, cut=()):
    return [
        {"text": text, "tokens": len(text), "finished": number not in cut, "kl": None, "scores": {}}
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("texts", "scores", "cut", "settings", "expected"),
    [
        ("abcd", [0.5, 2.0, -1.0, 1.0], (), {}, Kept(1, 2)),
        ("abcd", [2.0, 2.0, -1.0, -1.0], (), {}, Kept(0, 2)),  # of equal scores the first
        ("abcd", [NAN, 2.0, NAN, 1.0], (), {}, Kept(1, 3)),
        (["a", " ", "c"], [0.0, -9.0, 1.0], (), {}, Kept(2, 0)),  # an empty reply is none
        (["", " "], [0.0, 1.0], (), {}, EMPTY),
        ("ab", [NAN, NAN], (), {}, NO_SCORE),
        ("ab", [1.0, NAN], (), {}, SAME),  # nothing else to choose from
        ("abc", [3.0, 2.0, 1.0], (0,), {}, Kept(1, 2)),
        ("abc", [3.0, 2.0, 1.0], (2,), {}, Kept(0, 2)),
        ("abc", [3.0, 2.0, 1.0], (2,), {"truncated": "drop"}, Kept(0, 1)),
        ("abc", [3.0, 2.0, 1.0], (0,), {"truncated": "score"}, Kept(0, 2)),
        ("abc", [3.0, 2.0, 1.0], (0, 1, 2), {}, ALL_CUT),
        ("abc", [3.0, 2.0, 1.0], (0, 1), {}, TIE),  # what ended is the worst
        ("aaa", [1.0, 1.0, 1.0], (), {}, SAME),
        ("abc", [1.0, 1.0, 1.0], (), {}, TIE),
        ("abc", [1.0, 0.6, 0.5], (), {"min_margin": 0.5}, Kept(0, 2)),
        ("abc", [1.0, 0.6, 0.51], (), {"min_margin": 0.5}, CLOSE),
        ("abc", [1.0, 0.0, 0.0], (), {"min_score": 1.0}, Kept(0, 1)),
        ("abc", [0.9, 0.0, 0.0], (), {"min_score": 1.0}, LOW),
        ("abc", [1.0, 1.0, 1.0], (), {"min_score": 1.0}, TIE),
        ("abc", [1.0, 1.0, 1.0], (), {"min_score": 1.0, "keep": "best"}, Kept(0, None)),
        ("aaa", [1.0, 1.0, 1.0], (), {"min_score": 1.0, "keep": "best"}, Kept(0, None)),
        ("abc", [1.0, 1.0, 1.0], (), {"keep": "best"}, TIE),
    ],
)
def test_best_and_worst(texts, scores, cut, settings, expected):
    assert choose(replies(texts, cut), scores, RankSettings(**settings)) == expected


def test_measures_are_means_over_prompts():
    measures = Measures(["judge"])
    for texts, scores, cut in (
        (["aaaa", "b"], [3.0, 1.0], ()),
        (["a", "bb"], [0.0, 4.0], (0,)),
        (["a", "a"], [5.0, 5.0], ()),
    ):
        group = replies(texts, cut)
        for reply, score in zip(group, scores, strict=True):
            reply["scores"] = {"judge": score}
        measures.add(group, scores, choose(group, scores, RankSettings()))
    said = measures.report()
    assert said["longer_ci"][0] < said["longer"] == 1.0
    assert said == {
        "prompts": 3, "kept": 2, "replies": 6, "cut": 1 / 6, "ties": 1 / 3,
        "judges": {"judge": {"best": 3.5, "worst": 0.5, "all": 3.0}},
        "margin": 3.0, "length_best": 3.0, "length_worst": 1.0, "longer": 1.0, "longer_ci": said["longer_ci"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("longer", "shorter", "told"), [(80, 20, True), (55, 45, False), (3, 0, False), (20, 80, False)]
)
def test_length_bias_is_told_where_it_is_shown(longer, shorter, told):
    measures = Measures(["judge"])
    for best, worst, times in (("aaaa", "b", longer), ("a", "bbbb", shorter)):
        for _ in range(times):
            measures.add(replies([best, worst]), [1.0, 0.0], Kept(0, 1))
    assert (measures.warning() is not None) == told


def test_nothing_counted_is_null():
    said = Measures(["judge"]).report()
    assert said["margin"] is said["longer"] is said["longer_ci"] is said["cut"] is None
    assert Measures(["judge"]).warning() is None
