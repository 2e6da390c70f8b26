from __future__ import annotations

import pytest

from rlhf.report.names import Names, listed, shown_verdict
from tests.report import cases

NAMES = Names.of(cases.report(stages={"reward": {}, "dpo": {}}))


@pytest.mark.parametrize(
    ("name", "label"),
    [("dpo@2", "DPO@2"), ("ppo", "PPO"), ("mine", "mine"), ("mine@1", "mine@1"), ("dpo base", "DPO base"),
     ("base", "Base")],
)  # fmt: skip
def test_a_stage_is_labelled_as_it_named_itself(name, label):
    assert NAMES.label(name) == label


def test_a_judge_of_a_stages_name_is_its_reward_model():
    assert (NAMES.judge("reward"), NAMES.judge("helpful")) == ("the reward model", "helpful")
    assert (NAMES.reward_model("reward"), NAMES.reward_model("other")) == ("the reward model", "the reward model other")
    assert (NAMES.policy("base"), NAMES.policy("dpo base")) == ("the base model", "DPO's own base model")


def test_a_doubted_verdict_is_shown_as_such_and_no_difference_is_not():
    verdicts = [
        shown_verdict(cases.comparison(doubted=True, verdict=verdict)) for verdict in ("worse", "no difference")
    ]
    assert verdicts == ["doubtful", "no difference"]
    assert shown_verdict(cases.comparison()) == "better"


def test_lists():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
