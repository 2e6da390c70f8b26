"""Scores of replies as one number, by hand."""

import json
import math

import pytest

from rlhf.evaluation.replies import total_scores


def write(path, scores):
    """A prompt a line; of each reply the scores of two judges."""
    rows = [
        {"origin": "", "prompt": "p", "columns": {}, "replies": [{"scores": {"a": a, "b": b}} for a, b in replies]}
        for replies in scores
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_reward_counts_in_its_own_units(tmp_path):
    path = write(tmp_path / "samples.jsonl", [[(1.0, 0.0), (None, 0.0)], [(-2.0, 0.0)]])
    first, second = total_scores(path, {"a": 2.0})
    assert first[0] == 2.0
    assert math.isnan(first[1])
    assert second == [-4.0]


def test_several_are_brought_to_one_scale(tmp_path):
    """The second is a hundred times the first, and says the opposite."""
    path = write(tmp_path / "samples.jsonl", [[(0.0, 200.0), (1.0, 100.0), (2.0, 0.0)]])
    (totals,) = total_scores(path, {"a": 1.0, "b": 1.0})
    assert totals == pytest.approx([0.0, 0.0, 0.0])
    (totals,) = total_scores(path, {"a": 2.0, "b": 1.0})
    assert totals == pytest.approx([-1.0, 0.0, 1.0])
