import pytest

from rlhf.rewards.right_label import label_f1, right_label

SEVERAL = {"label": [["a", "b"], ["a", "b"], ["a", "b"], [], [], None]}
ANSWERS = ["b, a", "a", "c", "", "a", "a"]


def test_the_right_name_is_one_and_another_is_zero():
    replies = ["refund", " refund\n", "Refund", "lost", "3", [{"role": "assistant", "content": "refund"}]]
    labels = ["refund", "refund", "refund", "refund", 3, "refund"]
    assert right_label(["q"] * 6, replies, label=labels) == [1, 1, 0, 0, 1, 1]


def test_without_a_label_there_is_no_score():
    assert right_label(["q"] * 2, ["a", "a"]) == [None, None]
    assert right_label(["q"] * 3, ["a"] * 3, column="intent", intent=[None, " ", "a"], label=["b"] * 3) == [
        None,
        None,
        1,
    ]


def test_several_labels_have_to_match_in_any_order():
    assert right_label(["q"] * 6, ANSWERS, **SEVERAL) == [1, 0, 0, 1, 0, None]


def test_f1_of_several_labels_by_hand():
    """One of two names: 2 * 1 / (1 + 2)."""
    assert label_f1(["q"] * 6, ANSWERS, **SEVERAL) == [1, pytest.approx(2 / 3), 0, 1, 0, None]
    assert label_f1(["q"], ["a, b, c, d"], label=[["a", "e"]]) == [pytest.approx(2 / 6)]


def test_f1_of_one_label_is_whether_it_is_right():
    replies, labels = ["a", "b", "c", ""], ["a", "a", None, "a"]
    assert (
        label_f1(["q"] * 4, replies, label=labels) == right_label(["q"] * 4, replies, label=labels) == [1, 0, None, 0]
    )


def test_a_name_with_a_comma_is_itself():
    assert right_label(["q"], ["lost, or stolen"], label=["lost, or stolen"]) == [1]
    assert label_f1(["q"], ["lost, or stolen"], label=[["lost, or stolen"]]) == [1]
