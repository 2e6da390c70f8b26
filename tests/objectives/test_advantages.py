import inspect

import pytest
import torch

from rlhf.objectives.advantages import ESTIMATORS, estimator, gae, grpo, reinforce, rloo

GROUPED = [rloo, grpo]


def mask_of(*lengths, width=None):
    return torch.arange(width or max(lengths))[None] < torch.tensor(lengths)[:, None]


def at_the_end(scores, mask):
    """Rewards of 0 but for a score at each row's last token."""
    rewards = torch.zeros(mask.shape)
    for row, score in enumerate(scores):
        if mask[row].any():
            rewards[row, int(mask[row].sum()) - 1] = score
    return rewards


def ragged(seed, rows=6, width=7):
    torch.manual_seed(seed)
    mask = mask_of(*torch.randint(1, width + 1, (rows,)).tolist(), width=width)
    return torch.randn(rows, width), torch.randn(rows, width), mask, torch.randn(rows)


def test_the_numbers_of_torchtune():
    row = torch.tensor([[0.0, 0, 0, 1]])
    advantages, returns = gae(row, row, mask_of(4), 0.9, 0.95)
    assert returns[0].tolist() == pytest.approx([0.6579, 0.7695, 0.9, 1], abs=5e-5)
    assert advantages[0].tolist() == pytest.approx([0.6579, 0.7695, 0.9, 0], abs=5e-5)


def test_lambda_1_is_the_discounted_return_less_the_value():
    rewards, values = torch.tensor([[1.0, 2, 4]]), torch.tensor([[10.0, 20, 30]])
    advantages, returns = gae(rewards, values, mask_of(3), 0.5, 1.0)
    assert returns.tolist() == [[3.0, 4, 4]]
    assert advantages.tolist() == [[-7.0, -16, -26]]


def test_lambda_0_is_the_error_of_one_step():
    rewards, values = torch.tensor([[1.0, 2, 4]]), torch.tensor([[10.0, 20, 30]])
    advantages, _ = gae(rewards, values, mask_of(3), 0.5, 0.0)
    assert advantages.tolist() == [[1.0, -3, -26]]


def test_a_cut_completion_goes_on_and_a_finished_one_ends():
    rewards, values, mask = torch.zeros(3, 3), torch.zeros(3, 3), mask_of(3, 3, 2)
    _, returns = gae(rewards, values, mask, 0.5, 1.0, torch.tensor([8.0, 0, 8]))
    assert returns.tolist() == [[1.0, 2, 4], [0, 0, 0], [2, 4, 0]]
    assert gae(rewards, values, mask, 0.5, 1.0)[1].abs().max() == 0


SAMPLED = sorted(name for name, entry in ESTIMATORS.items() if not entry.every_action)


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("seed", range(5))
def test_padding_and_companions_change_nothing(name, seed):
    rewards, values, mask, last = ragged(seed)
    whole = ESTIMATORS[name].function(rewards, values, mask, 0.9, 0.8, last, 2)
    junk = torch.full((6, 3), float("nan"))
    wider = ESTIMATORS[name].function(
        torch.cat([rewards.masked_fill(~mask, torch.inf), junk], 1),
        torch.cat([values.masked_fill(~mask, torch.nan), junk], 1),
        torch.cat([mask, torch.zeros(6, 3, dtype=torch.bool)], 1),
        0.9, 0.8, last, 2,
    )  # fmt: skip
    for narrow, wide in zip(whole, wider, strict=True):
        assert narrow.dtype == torch.float32
        assert (narrow[~mask] == 0).all()
        torch.testing.assert_close(wide, torch.nn.functional.pad(narrow, (0, 3)))
    for first in (0, 2, 4):  # a group alone, cut to its longest completion
        rows, width = slice(first, first + 2), int(mask[first : first + 2].sum(1).max())
        own = [tensor[rows, :width] for tensor in (rewards, values, mask)]
        for part, one in zip(whole, ESTIMATORS[name].function(*own, 0.9, 0.8, last[rows], 2), strict=True):
            torch.testing.assert_close(part[rows, :width], one)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_completion_without_a_score_has_no_part(name):
    rewards, values, mask, last = ragged(7)
    mask[3] = False
    result = ESTIMATORS[name].function(rewards, values, mask, 1.0, 0.9, last, 2)
    other = ESTIMATORS[name].function(rewards + 99 * (~mask), values, mask, 1.0, 0.9, last + 5 * (~mask[:, 0]), 2)
    for one, same in zip(result, other, strict=True):
        assert (one[3] == 0).all()
        assert torch.equal(one, same)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_rloo_by_hand(gamma):
    """Scores 1, 2, 6 behind one token: against 4, 3.5, 1.5."""
    mask = mask_of(1, 1, 1, 1, 1, 1)
    scores = torch.tensor([[1.0], [2], [6], [0], [0], [3]])
    advantages, returns = rloo(scores, None, mask, gamma, 1.0, group_size=3)
    assert advantages.flatten().tolist() == pytest.approx([-3, -1.5, 4.5, -1.5, -1.5, 3])
    assert returns.tolist() == scores.tolist()


def test_grpo_by_hand():
    """Scores 1, 2, 6: mean 3, σ = √7 over n − 1."""
    advantages, _ = grpo(torch.tensor([[1.0], [2], [6]]), None, mask_of(1, 1, 1), 1.0, 1.0, group_size=3)
    assert advantages.flatten().tolist() == pytest.approx([-0.7559, -0.3780, 1.1338], abs=1e-4)
    tiny, _ = grpo(torch.tensor([[0.0], [2e-4]]), None, mask_of(1, 1), 1.0, 1.0, group_size=2)
    assert tiny.flatten().tolist() == pytest.approx([-0.41421, 0.41421], abs=1e-4)  # 1 / (√2 + 1): the 1e-4 counts


def test_a_whole_completion_is_worth_its_discounted_rewards():
    rewards, mask = torch.tensor([[1.0, 2, 4, 9], [0, 0, 8, 0]]), mask_of(3, 4)
    advantages, returns = rloo(rewards, None, mask, 0.5, 1.0, group_size=2)
    assert returns.tolist() == [[3, 3, 3, 0], [2, 2, 2, 2]]
    assert advantages.tolist() == [[1, 1, 1, 0], [-1, -1, -1, -1]]


def test_reinforce_by_hand():
    rewards = torch.tensor([[1.0, 2, 4, 9], [0, 0, 0, 8]])
    advantages, returns = reinforce(rewards, None, mask_of(3, 4), 0.5, 0.3, torch.tensor([50.0, 50]))  # no critic
    assert advantages.tolist() == [[3, 4, 4, 0], [1, 2, 4, 8]]
    assert torch.equal(advantages, returns)


@pytest.mark.parametrize("estimator", GROUPED)
@pytest.mark.parametrize("size", [2, 3, 6])
def test_properties_of_a_group(estimator, size):
    rewards, _, mask, _ = ragged(3)
    whole, _ = estimator(rewards, None, mask, 1.0, 1.0, group_size=size)
    torch.testing.assert_close(whole[:, 0].view(-1, size).sum(1), torch.zeros(6 // size), atol=1e-5, rtol=0)
    raised = rewards.clone()
    raised[:size, 0] += 5  # each completion of the first group is worth 5 more
    torch.testing.assert_close(estimator(raised, None, mask, 1.0, 1.0, group_size=size)[0], whole)
    order = torch.cat([torch.randperm(size) + first for first in range(0, 6, size)])
    mixed, _ = estimator(rewards[order], None, mask[order], 1.0, 1.0, group_size=size)
    torch.testing.assert_close(mixed, whole[order])


@pytest.mark.parametrize("estimator", GROUPED)
def test_who_has_no_score_is_no_baseline(estimator):
    """A group of three with one left out is a group of two; one alone has nothing to be compared with."""
    full = mask_of(2, 3, 1)
    scores = at_the_end([1.0, 5.0, 7.0], full)
    mask = full.clone()
    mask[1] = False
    result, _ = estimator(scores, None, mask, 1.0, 1.0, group_size=3)
    pair, _ = estimator(scores[[0, 2]], None, mask[[0, 2]], 1.0, 1.0, group_size=2)
    assert torch.equal(result[[0, 2]], pair)
    assert pair.abs().max() > 0
    assert result[1].abs().max() == 0
    mask[2] = False
    assert estimator(scores, None, mask, 1.0, 1.0, group_size=3)[0].abs().max() == 0
    mask[0] = False
    assert estimator(scores, None, mask, 1.0, 1.0, group_size=3)[0].abs().max() == 0
    assert estimator(scores, None, full, 1.0, 1.0)[0].abs().max() == 0  # groups of one


def test_equal_scores_teach_nothing():
    mask = mask_of(2, 3, 1)
    for compared in GROUPED:
        assert compared(at_the_end([4.0] * 3, mask), None, mask, 1.0, 1.0, group_size=3)[0].abs().max() == 0


def test_one_signature_for_all():
    assert len({str(inspect.signature(entry.function)) for entry in ESTIMATORS.values()}) == 1
    assert all(name == entry.function.__name__ for name, entry in ESTIMATORS.items())
    with pytest.raises(ValueError, match="values"):
        gae(torch.zeros(1, 1), None, mask_of(1), 1.0, 1.0)


def test_what_each_estimator_needs():
    needs = {name: (entry.needs_values, entry.min_group) for name, entry in ESTIMATORS.items()}
    assert needs == {
        "gae": (True, 1),
        "rloo": (False, 2),
        "grpo": (False, 2),
        "reinforce": (False, 1),
        "exact": (False, 1),
    }


def test_an_estimator_is_known_by_its_decorator_alone(monkeypatch):
    monkeypatch.setattr("rlhf.objectives.advantages.ESTIMATORS", {})

    @estimator(min_group=3)
    def best_of_three(rewards_BT, values_BT, mask_BT, gamma, lam, last_values_B=None, group_size=1):
        return rewards_BT, rewards_BT

    from rlhf.objectives import advantages

    assert advantages.ESTIMATORS["best_of_three"].min_group == 3


def test_exact_is_the_expectation_of_what_sampling_estimates():
    """Σ_a π(a) A_a ∇log π(a) over every action is the mean of REINFORCE's gradient, here by hand for two inputs."""
    chances = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.1, 0.8])
    rewards = torch.tensor([[1.0], [0.0], [2.0], [0.0], [3.0], [1.0]])
    mask = torch.ones(6, 1, dtype=torch.bool)
    advantages, returns = ESTIMATORS["exact"].function(
        rewards, None, mask, 1.0, 1.0, group_size=3, log_probs_BT=chances.log()[:, None]
    )
    expected = [1.0 - 0.9, -0.9, 2.0 - 0.9, -1.1, 3.0 - 1.1, 1.0 - 1.1]
    assert advantages.flatten().tolist() == pytest.approx(expected)
    assert returns.equal(rewards)
    assert (advantages.flatten() * chances).view(2, 3).sum(1).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_exact_leaves_out_actions_without_a_reward():
    chances = torch.tensor([0.5, 0.25, 0.25])
    mask = torch.tensor([[True], [True], [False]])
    advantages, _ = ESTIMATORS["exact"].function(
        torch.tensor([[3.0], [0.0], [9.0]]), None, mask, 1.0, 1.0, group_size=3, log_probs_BT=chances.log()[:, None]
    )
    assert advantages.flatten().tolist() == pytest.approx([1.0, -2.0, 0.0])  # over what is left: 2/3 and 1/3
