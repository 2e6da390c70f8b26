import math
from types import SimpleNamespace

import pytest
import torch

from rlhf.ppo.diagnostics import LARGE_GAP, disagreement, equal_score_groups, hacking_signs, signs_of_trouble


def history(before, after, each=5):
    return [dict(zip(("scores", "length", "kl"), row, strict=True)) for row in (before, after) for _ in range(each)]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((1.0, 100, 2), (2.0, 180, 30), True),
        ((1.0, 100, 2), (2.0, 150, 10.5), True),
        ((2.0, 100, 2), (1.0, 180, 30), False),  # the score fell
        ((1.0, 100, 2), (1.0, 180, 30), False),  # it stayed
        ((1.0, 100, 2), (2.0, 149, 30), False),  # not much longer
        ((1.0, 100, 2), (2.0, 180, 10), False),  # hardly moved
    ],
)
def test_signs_of_hacking(before, after, said):
    result = hacking_signs(history(before, after))
    assert (result is not None) is said


def test_the_sentence_has_the_numbers_of_the_first_and_the_last_rollouts():
    middle = [{"scores": 99.0, "length": 999, "kl": 99}] * 7
    rows = history((1.0, 100, 2), (2.25, 180, 30))
    result = hacking_signs(rows[:5] + middle + rows[5:])
    for words in ("from 1.00 to 2.25", "from 100 to 180 tokens", "KL is 30 nats"):
        assert words in result
    mixed = [{"scores": float(i), "length": 100 * (1 + i), "kl": 11} for i in range(4)]
    assert "from 0.50 to 2.50" in hacking_signs(mixed, window=2)


def test_too_few_rollouts_say_nothing():
    assert hacking_signs(history((1.0, 100, 2), (9.0, 990, 99), each=4)) is None
    assert hacking_signs([]) is None


def test_groups_with_one_score():
    out = math.nan
    scores = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 1.0], [3.0, out, 3.0], [out, out, out], [1.0, out, 2.0]])
    assert equal_score_groups(scores).tolist() == [True, False, True, True, False]


def test_a_gap_that_is_rounding_is_no_disagreement():
    assert disagreement("here", 1e-3, "it") is None
    assert disagreement("here", math.nan, "it") is None
    assert "here by 0.1 nats a token" in disagreement("here", 0.1, "it is at fault")


def test_a_sampler_that_is_far_from_the_trainer():
    args = SimpleNamespace(bootstraps=False, estimator=SimpleNamespace(min_group=1))
    quiet = {"response/eos_share": 1.0, "objective/kl": 0.0, "response/scored_share": 1.0}
    assert not list(signs_of_trouble({**quiet, "sampler/gap": LARGE_GAP}, args, 0, []))
    ((kind, sentence),) = signs_of_trouble({**quiet, "sampler/gap": 0.25}, args, 3, [])
    assert kind == "gap"
    assert "in rollout 3 the sampler's log-probabilities are 0.25 nats a token off" in sentence
