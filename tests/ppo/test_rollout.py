import dataclasses
import math

import pytest
import torch

from rlhf.policies.completion import Completion
from rlhf.ppo.rollout import Rollout, as_arrays, padded, prompt_numbers, token_rewards
from rlhf.prefix_sharing.layout import lay_out

PROMPTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13]]
IDS = [[[20, 21], [22]], [[23, 24, 25], [26, 27]], [[28], [29]]]
COMPLETIONS = [[Completion(ids, False) for ids in row] for row in IDS]
LENGTHS = torch.tensor([2, 1, 3, 2, 1, 1])
MASK = torch.arange(3)[None] < LENGTHS[:, None]


def rollout(**fields):
    numbers = torch.arange(18.0).view(6, 3)
    arrays = {"log_probs_BT": numbers, "advantages_BT": numbers + 100, "returns_BT": numbers + 200}
    return Rollout(**{"inputs": PROMPTS, "completions": COMPLETIONS, "mask_BT": MASK, **arrays, **fields})


class Packer:
    """As much of a policy as packs token ids."""

    def __init__(self, widest=None):
        self.widest = widest

    def size(self, prompt, completions):
        return len(prompt) + sum(len(completion.ids) for completion in completions)

    def pack(self, prompts, completions):
        return lay_out(prompts, [[completion.ids for completion in row] for row in completions], 1, self.widest)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": PROMPTS[:2]}, "2 inputs, 3 groups"),
        ({"completions": [*COMPLETIONS[:2], COMPLETIONS[2][:1]]}, r"sizes \[1, 2\]"),
        ({"returns_BT": torch.zeros(6, 2)}, r"returns_BT is \(6, 2\), expected \(6, 3\)"),
        ({"values_BT": torch.zeros(5, 3)}, "values_BT"),
        ({"weights_BT": torch.zeros(6, 4)}, "weights_BT"),
        ({"mask_BT": MASK.float()}, "must be bool"),
        ({"mask_BT": torch.ones(6, 3, dtype=torch.bool)}, "at the actions of a completion"),
    ],
)
def test_wrong_shapes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        rollout(**fields)


@pytest.mark.parametrize("widest", [None, 0])
def test_a_micro_batch_is_some_rows_of_the_whole(widest):
    whole = rollout(values_BT=torch.arange(18.0).view(6, 3) + 300)
    chosen = [5, 0, 1, 4]
    part = whole.micro_batch(chosen, 7.0, Packer(widest))
    assert part.tokens == 7
    assert part.weights_BT is None
    for name in ("mask_BT", "log_probs_BT", "advantages_BT", "returns_BT", "values_BT"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[chosen, :2]), name
    assert torch.equal(part.packed.mask_BT, MASK[chosen, :2])
    tokens = part.packed.ids_RL.flatten()[part.packed.states_BU]
    assert tokens.tolist() == [[13, 29, 29], [10, 20, 21], [10, 22, 22], [13, 28, 28]]
    assert len(part.packed.ids_RL) == (4 if widest == 0 else 3)  # 0 and 1 share a prompt and stand together


def test_a_completion_without_a_score_keeps_its_tokens_and_loses_its_mask():
    mask = MASK.clone()
    mask[2] = False
    part = rollout(mask_BT=mask).micro_batch([2, 3], 2.0, Packer())
    assert part.mask_BT.tolist() == [[False] * 3, [True, True, False]]
    assert part.packed.mask_BT.tolist() == [[True] * 3, [True, True, False]]


def test_a_micro_batch_moves_as_a_whole():
    part = rollout().micro_batch([0, 1], 3.0, Packer()).to(torch.device("meta"))
    arrays = [getattr(part, field.name) for field in dataclasses.fields(part) if field.name.endswith("_BT")]
    assert {array.device.type for array in arrays if array is not None} == {"meta"}
    assert part.packed.ids_RL.device.type == "meta"
    assert part.tokens == 3
    assert part.values_BT is None


def test_by_length_keeps_groups_together():
    """Lengths with the longest completion: 8, 4 and 3."""
    assert rollout().by_length([0, 1, 2], Packer()) == [4, 5, 2, 3, 0, 1]
    assert rollout().by_length([1, 0], Packer()) == [2, 3, 0, 1]
    same = rollout(inputs=[[5, 6], [11], [12, 13, 14]])
    assert same.by_length([2, 1, 0], Packer()) == [0, 1, 2, 3, 4, 5]  # equal ones in order


def test_padded():
    assert padded([[1, 2], []], 3).tolist() == [[1, 2, 0], [0, 0, 0]]
    assert padded([[1, 2]], 2).dtype == torch.float32


KL_MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False], [True, True, False]])
KL = torch.tensor([[1.0, -2, 3], [4, math.nan, math.inf], [7, 7, 7], [0, 0, 9]])
SCORES = torch.tensor([10.0, 20, math.nan, 40])
CUT = torch.tensor([False, False, True, True])


@pytest.mark.parametrize(
    ("penalty", "bootstrap", "last"),
    [(0.0, False, 40.0), (1.5, False, 38.5), (0.0, True, 0.0), (1.5, True, -1.5)],
)
def test_token_rewards_by_hand(penalty, bootstrap, last):
    """KL at each token, the score at a completion's last; only the cut one feels penalty and bootstrap."""
    rewards = token_rewards(
        scores_B=SCORES, kl_BT=KL, mask_BT=KL_MASK, kl_coef=0.5, cut_B=CUT, missing_eos_penalty=penalty,
        bootstrap=bootstrap,
    )  # fmt: skip
    assert rewards.tolist() == [[-0.5, 1, 8.5], [18, 0, 0], [0, 0, 0], [0, last, 0]]


def test_arguments_are_left_alone():
    kl = torch.ones(1, 2)
    rewards = token_rewards(
        scores_B=torch.ones(1), kl_BT=kl, mask_BT=kl.bool(), kl_coef=0.0, cut_B=torch.zeros(1, dtype=torch.bool),
        missing_eos_penalty=0.0, bootstrap=False,
    )  # fmt: skip
    assert rewards.sum() == 1
    assert (kl == 1).all()


def test_completions_as_arrays():
    rows = [Completion([5, 6], True, [-1.0, -2.0], [0.5, 0.25]), Completion([7], False, [-3.0], [1.0])]
    sampled = as_arrays(completions=rows)
    assert sampled.written_BT.tolist() == [[True, True], [True, False]]
    assert sampled.log_probs_BT.tolist() == [[-1, -2], [-3, 0]]
    assert sampled.entropies_BT.tolist() == [[0.5, 0.25], [1, 0]]
    assert sampled.cut_B.tolist() == [False, True]
    assert as_arrays(completions=[Completion([5], True, [-1.0])]).entropies_BT is None


def test_each_pass_has_every_prompt_once_in_another_order():
    """Whatever a rollout's size: places 0 to 20 of passes over 7."""
    settings = {"prompts": 7, "seed": 3}
    stream = [number for rollout in range(7) for number in prompt_numbers(rollout=rollout, count=3, **settings)]
    passes = [stream[begin : begin + 7] for begin in (0, 7, 14)]
    assert all(sorted(one_pass) == list(range(7)) for one_pass in passes)
    assert len({tuple(one_pass) for one_pass in passes}) == 3
    assert prompt_numbers(rollout=0, count=21, **settings) == stream
