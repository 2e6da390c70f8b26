"""Rows: what is observed of them, in which order they come, and what is refused."""

import copy
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from rlhf.data.records import Prompt
from rlhf.envs import LabelEnv, Rows
from rlhf.errors import UserError
from tests.envs.conftest import LABELS, QUESTIONS, counts, right


def order(env, seed, count):
    drawn = [env.reset(seed=seed)[1]["row"]]
    return drawn + [env.reset()[1]["row"] for _ in range(count - 1)]


def test_rows_come_in_a_seeded_order_each_once_before_any_comes_again():
    rows = Rows([{"prompt": [float(number)], "label": "card"} for number in range(20)])
    env = LabelEnv(rows, LABELS, right)
    first = order(env, 7, 60)
    assert [sorted(first[start : start + 20]) for start in (0, 20, 40)] == [list(range(20))] * 3
    assert order(env, 7, 60) == first
    assert order(LabelEnv(rows, LABELS, right), 8, 20) != first[:20]


def test_a_row_can_be_asked_for(rows):
    env = LabelEnv(rows, LABELS, right)
    assert [env.reset(options={"row": number})[1]["row"] for number in (2, 0, 1)] == [2, 0, 1]
    for number in (3, -1, "first"):
        with pytest.raises(UserError, match="no row"):
            env.reset(options={"row": number})


def test_stages_show_more_and_more_of_a_text_and_of_a_vector():
    rows = Rows(QUESTIONS, counts, shown=(0, 2, None))
    assert rows.vectors_NRD[0].tolist() == [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    numbers = Rows([{"prompt": [3.0, 4.0, 5.0]}], shown=(1, 2, None))
    assert numbers.vectors_NRD[0].tolist() == [[3, 0, 0], [3, 4, 0], [3, 4, 5]]


def test_features_of_each_row_can_be_given():
    given = np.arange(12.0).reshape(3, 4)
    assert Rows(QUESTIONS, given).vectors_NRD.tolist() == given[:, None].tolist()
    assert Rows(QUESTIONS, given.reshape(3, 2, 2)).vectors_NRD.tolist() == given.reshape(3, 2, 2).tolist()


def test_features_are_computed_once_for_all_environments():
    asked = []
    rows = Rows(QUESTIONS, lambda text: asked.append(text) or [len(text)])
    for env in (LabelEnv(rows, LABELS, right), LabelEnv(rows, LABELS, right)):
        env.reset(seed=0)
        env.step(0)
    assert asked == [row["prompt"] for row in QUESTIONS]
    assert copy.deepcopy(rows) is rows


def test_records_are_rows():
    rows = Rows([Prompt("where is my card", {"label": "card"})], counts)
    assert (rows.prompts, rows.columns) == (["where is my card"], [{"label": "card"}])
    assert rows.score(right, 0, "card") == 1.0


def test_columns_with_the_names_of_arguments_are_left_out():
    rows = Rows([{"prompt": "a", "prompts": "x", "completions": "y", "label": "card"}])
    assert rows.score(right, 0, "loan") == -1.0


@pytest.mark.parametrize(
    ("items", "features", "shown", "said"),
    [
        ([], None, (None,), "none"),
        ([{"text": "a"}], None, (None,), "row 0 has no 'prompt'"),
        ([{"prompt": "a"}], None, (None,), "features="),
        ([{"prompt": [{"role": "user", "content": "a"}]}], None, (None,), "row 0"),
        ([{"prompt": [1.0]}, {"prompt": [1.0, 2.0]}], None, (None,), "row 1"),
        ([{"prompt": [1.0]}, {"prompt": [float("nan")]}], None, (None,), "row 1"),
        ([{"prompt": "a"}], counts, (2, 2), "shown"),
        ([{"prompt": "a"}], counts, (None, 2), "shown"),
        ([{"prompt": "a"}], counts, (), "shown"),
        ([{"prompt": "a"}], [[1.0]], (2, None), "shown"),
        ([{"prompt": "a"}], [[1.0], [2.0]], (None,), "1 rows"),
        ([{"prompt": "a"}], [[float("nan")]], (None,), "1 rows"),
        ([{"prompt": "a"}], [1.0], (None,), "1 rows"),
    ],
)
def test_rows_that_cannot_be_observed_are_refused(items, features, shown, said):
    with pytest.raises(UserError) as caught:
        _ = Rows(items, features, shown).vectors_NRD
    assert said in str(caught.value)


@pytest.mark.parametrize("scores", [[None], [float("nan")], [], [1.0, 2.0]])
def test_a_reward_that_is_no_number_names_its_row(rows, scores):
    env = LabelEnv(rows, LABELS, lambda prompts, completions, **columns: scores)
    env.reset(options={"row": 1})
    with pytest.raises(UserError, match="row 1 "):
        env.step(0)


def test_an_episode_that_is_over_takes_no_step(rows):
    env = LabelEnv(rows, LABELS, right)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


def test_without_the_extra_there_is_one_clear_line():
    code = """
import sys
sys.modules["gymnasium"] = None
from rlhf.errors import UserError
try:
    import rlhf.envs
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "rlhf-pipeline[envs]" in done.stdout
    assert done.stdout.count("\n") == 1


def test_vectors_keep_their_values():
    rows = Rows([{"prompt": np.array([1, 2]), "label": "card"}])
    observation, _ = LabelEnv(rows, LABELS, right).reset(seed=0)
    observation += 1
    assert rows.vectors_NRD.tolist() == [[[1, 2]]]
