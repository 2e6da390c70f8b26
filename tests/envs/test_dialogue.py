"""A dialogue: what asking reveals and costs, how it ends, and its few states."""

import gymnasium
import numpy as np
import pytest

from rlhf.envs import DialogueEnv, LabelEnv, Rows, Tabular
from rlhf.errors import UserError
from tests.envs.conftest import LABELS, right


@pytest.fixture
def env(stages):
    return DialogueEnv(stages, LABELS, right, ask_cost=0.25, handover_cost=0.75)


def test_asking_reveals_words_and_costs(env):
    seen, _ = env.reset(options={"row": 0})
    assert seen.tolist() == pytest.approx([1, 1, 0, 0, 0, 0])
    seen, *rest = env.step(env.ask)
    assert seen.tolist() == pytest.approx([1, 1, 1, 0, 0, 1 / 3])
    assert rest[:3] == [-0.25, False, False]
    seen, *rest = env.step(env.ask)
    assert seen.tolist() == pytest.approx([1, 1, 1, 1, 0, 2 / 3])
    _, *rest = env.step(0)
    assert rest == [1.0, True, False, {"row": 0, "completion": "card"}]


def test_handing_over_costs_and_ends(env):
    env.reset(options={"row": 0})
    assert env.step(env.hand_over)[1:4] == (-0.75, True, False)


def test_a_customer_who_is_only_asked_is_handed_over(env):
    env.reset(options={"row": 0})
    steps = [env.step(env.ask)[1:4] for _ in range(3)]
    assert steps == [(-0.25, False, False), (-0.25, False, False), (-1.0, True, True)]


def test_a_question_after_the_last_stage_reveals_nothing(stages):
    env = DialogueEnv(stages, LABELS, right, max_turns=5)
    env.reset(options={"row": 2})
    seen = [env.step(env.ask)[0] for _ in range(4)]
    assert (seen[1][:-1] == seen[3][:-1]).all()
    assert seen[3][-1] == pytest.approx(4 / 5)


def test_a_state_is_turn_class_and_bin():
    """Two classes, one edge: 0.8 of class 1 after no question is state 0 * 4 + 1 * 2 + 1."""
    known = {"": [0.5, 0.5], "where": [0.2, 0.8], "where is": [0.9, 0.1]}
    rows = Rows([{"prompt": "where is", "label": "card"}], known.__getitem__, shown=(0, 1, None))
    env = Tabular(gymnasium.make("rlhf/Dialogue-v0", rows=rows, labels=LABELS, reward=right), edges=(0.7,))
    ask = env.unwrapped.ask
    states = [env.reset()[0], env.step(ask)[0], env.step(ask)[0]]
    assert states == [0, 4 + 2 + 1, 8 + 0 + 1]
    assert env.observation_space.n == 4 * 2 * 2
    assert env.step(ask)[0] == 12 + 0 + 1


def test_only_probabilities_of_a_dialogue_become_states(stages, rows):
    with pytest.raises(UserError, match="DialogueEnv"):
        Tabular(LabelEnv(rows, LABELS, right))
    two = Rows([{"prompt": [2.0, 0.0], "label": "card"}])
    with pytest.raises(UserError, match="probabilities"):
        Tabular(DialogueEnv(two, LABELS, right))


def test_a_customer_waits_for_an_action(stages):
    with pytest.raises(UserError, match="max_turns"):
        DialogueEnv(stages, LABELS, right, max_turns=0)


def test_observations_are_float32(env):
    assert env.reset(seed=0)[0].dtype == np.float32
