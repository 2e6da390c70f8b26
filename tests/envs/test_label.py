"""One action a row: the class, and its reward."""

import pytest

from rlhf.envs import LabelEnv
from rlhf.errors import UserError
from tests.envs.conftest import LABELS, right


def test_the_reward_is_that_of_the_class_s_name(rows):
    env = LabelEnv(rows, LABELS, right)
    seen, _ = env.reset(options={"row": 1})
    assert seen.tolist() == [1, 1, 1, 0, 1]
    assert env.step(1)[1:] == (1.0, True, False, {"row": 1, "completion": "loan"})
    env.reset(options={"row": 1})
    assert env.step(0)[1] == -1.0


@pytest.mark.parametrize("labels", ["card", ["card"], ["card", "card"]])
def test_classes_have_different_names(rows, labels):
    with pytest.raises(UserError, match="labels"):
        LabelEnv(rows, labels, right)
