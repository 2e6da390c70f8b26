import pytest

from rlhf.rewards.ensemble import Ensemble


def giving(*scores):
    return lambda prompts, completions, **columns: list(scores)


def test_by_hand():
    """1, 2, 6: mean 3, population variance (4 + 1 + 9) / 3."""
    models = [giving(1.0), giving(2.0), giving(6.0)]
    assert Ensemble(models, 0.0)(["q"], ["a"]) == [3.0]
    assert Ensemble(models, 0.5)(["q"], ["a"]) == pytest.approx([3 - 0.5 * (14 / 3) ** 0.5])


def test_of_two_models_the_lower_counts():
    together = Ensemble([giving(1.0, -4.0, 2.0), giving(3.0, -6.0, 2.0)])
    assert together(["q"] * 3, ["a"] * 3, topic=["x"] * 3) == [1.0, -6.0, 2.0]


def test_what_one_cannot_score_has_no_score():
    assert Ensemble([giving(1.0, None), giving(1.0, 2.0)])(["q"] * 2, ["a"] * 2) == [1.0, None]


def test_columns_reach_every_model():
    def told(prompts, completions, topic):
        return [float(len(value)) for value in topic]

    assert Ensemble([told, told])(["q"], ["a"], topic=["four"]) == [4.0]
