import random

import pytest

from rlhf.rewards.macro_f1 import macro_f1


def test_by_hand():
    """Labels a a a b, answers a b a b: F1_a = 4/5, F1_b = 2/3; B = 4, C = 2.

    Without its answer the first row leaves F1_a = 2/4; the second F1_b = 1; the fourth F1_b = 0.
    """
    rewards = macro_f1(["q"] * 4, ["a", "b", "a", "b"], label=["a", "a", "a", "b"])
    assert rewards == pytest.approx(
        [4 / 2 * (4 / 5 - 1 / 2), 4 / 2 * (2 / 3 - 1), 4 / 2 * (4 / 5 - 1 / 2), 4 / 2 * 2 / 3]
    )


def test_a_right_answer_to_a_rare_class_earns_more():
    frequent, *_, rare = macro_f1(["q"] * 9, ["a"] * 8 + ["b"], label=["a"] * 8 + ["b"])
    assert rare > 4 * frequent > 0


def test_it_is_the_difference_that_the_answer_makes():
    """Against macro F1 by precision and recall, each answer withdrawn in turn, in a batch with all kinds of rows."""
    draw = random.Random(1)
    labels = [draw.choice("aaaabbc") for _ in range(40)]
    answers = [draw.choice([label, label, *"abcd", ""]) for label in labels]

    def whole(given):
        scores = []
        for name in set(labels):
            hits = sum(label == answer == name for label, answer in zip(labels, given, strict=True))
            precision, recall = hits / max(1, given.count(name)), hits / labels.count(name)
            scores.append(2 * precision * recall / (precision + recall) if hits else 0)
        return sum(scores) / len(scores)

    without = [whole([*answers[:row], "", *answers[row + 1 :]]) for row in range(40)]
    expected = [40 * (whole(answers) - rest) for rest in without]
    rewards = macro_f1(["q"] * 40, answers, label=labels)
    assert rewards == pytest.approx(expected)
    assert min(rewards) < 0 < max(rewards)


def test_an_answer_that_is_no_class_of_the_batch_and_none_are_neither_good_nor_bad():
    assert macro_f1(["q"] * 3, ["z", "", "a"], label=["a", "a", "a"])[:2] == [0, 0]


def test_several_labels_add_up():
    """Labels {a, b} and {a}, answers {a, c} and {b}: F1_a = 2/3, F1_b = 0, and c is no class."""
    rewards = macro_f1(["q"] * 2, ["a, c", "b"], label=[["a", "b"], ["a"]])
    assert rewards == pytest.approx([2 / 2 * 2 / 3, 0])


def test_rows_without_a_label_are_not_part_of_the_batch():
    rewards = macro_f1(["q"] * 3, ["a", "a", "b"], label=["a", None, "b"])
    assert rewards == [macro_f1(["q"] * 2, ["a", "b"], label=["a", "b"])[0], None, pytest.approx(1)]
    assert macro_f1(["q"], ["a"]) == [None]
    assert macro_f1([], []) == []
