import dataclasses

import pytest
import torch

from rlhf.ppo.rollout import Rollout, padded

PROMPTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13]]
REPLIES = [[[20, 21], [22]], [[23, 24, 25], [26, 27]], [[28], [29]]]
LENGTHS = torch.tensor([2, 1, 3, 2, 1, 1])
MASK = torch.arange(3)[None] < LENGTHS[:, None]


def rollout(**fields):
    numbers = torch.arange(18.0).view(6, 3)
    arrays = {"log_probs_BT": numbers, "advantages_BT": numbers + 100, "returns_BT": numbers + 200}
    return Rollout(**{"prompts": PROMPTS, "replies": REPLIES, "mask_BT": MASK, **arrays, "pad": 1, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": PROMPTS[:2]}, "2 prompts, 3 rows"),
        ({"replies": [*REPLIES[:2], [[28]]]}, r"sizes \[1, 2\]"),
        ({"returns_BT": torch.zeros(6, 2)}, r"returns_BT is \(6, 2\), expected \(6, 3\)"),
        ({"values_BT": torch.zeros(5, 3)}, "values_BT"),
        ({"weights_BT": torch.zeros(6, 4)}, "weights_BT"),
        ({"mask_BT": MASK.float()}, "must be bool"),
        ({"mask_BT": torch.ones(6, 3, dtype=torch.bool)}, "at the tokens of a reply"),
    ],
)
def test_wrong_shapes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        rollout(**fields)


@pytest.mark.parametrize("widest", [None, 0])
def test_a_minibatch_is_some_rows_of_the_whole(widest):
    whole = rollout(widest=widest, values_BT=torch.arange(18.0).view(6, 3) + 300)
    chosen = [5, 0, 1, 4]
    part = whole.minibatch(chosen, 7.0)
    assert part.tokens == 7
    assert part.weights_BT is None
    for name in ("mask_BT", "log_probs_BT", "advantages_BT", "returns_BT", "values_BT"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[chosen, :2]), name
    assert torch.equal(part.folded.mask_BT, MASK[chosen, :2])
    tokens = part.folded.ids_RL.flatten()[part.folded.states_BS]
    assert tokens.tolist() == [[13, 29, 29], [10, 20, 21], [10, 22, 22], [13, 28, 28]]
    assert len(part.folded.ids_RL) == (4 if widest == 0 else 3)  # 0 and 1 share a prompt and stand together


def test_a_reply_without_a_score_keeps_its_tokens_and_loses_its_mask():
    mask = MASK.clone()
    mask[2] = False
    part = rollout(mask_BT=mask).minibatch([2, 3], 2.0)
    assert part.mask_BT.tolist() == [[False] * 3, [True, True, False]]
    assert part.folded.mask_BT.tolist() == [[True] * 3, [True, True, False]]


def test_a_minibatch_moves_as_a_whole():
    part = rollout().minibatch([0, 1], 3.0).to(torch.device("meta"))
    assert {getattr(part, one.name).device.type for one in dataclasses.fields(part) if one.name.endswith("_BT")
            and getattr(part, one.name) is not None} == {"meta"}  # fmt: skip
    assert part.folded.ids_RL.device.type == "meta"
    assert part.tokens == 3
    assert part.values_BT is None


def test_by_length_keeps_groups_together():
    """Lengths with the longest reply: 8, 4 and 3."""
    assert rollout().by_length([0, 1, 2]) == [4, 5, 2, 3, 0, 1]
    assert rollout().by_length([1, 0]) == [2, 3, 0, 1]
    same = rollout(prompts=[[5, 6], [11], [12, 13, 14]])
    assert same.by_length([2, 1, 0]) == [0, 1, 2, 3, 4, 5]  # equal ones in order


def test_padded():
    assert padded([[1, 2], []], 3).tolist() == [[1, 2, 0], [0, 0, 0]]
    assert padded([[1, 2]], 2).dtype == torch.float32
