import math

import pytest
import torch

from rlhf.rewards.compose import normalisation, normalise, score_matrix, weighted_sum

NAN = math.nan


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def same(result, wanted):
    torch.testing.assert_close(result, tensor(wanted), rtol=0, atol=1e-12, equal_nan=True)


def test_none_becomes_nan_and_never_zero():
    same(score_matrix([[1.0, None, 0.0], [4.0, 5.0, None]]), [[1, 4], [NAN, 5], [0, NAN]])


def test_mean_and_std_by_hand():
    """1, 3, 8: mean 4, deviations -3, -1, 4, squares 26, by n - 1 = 2: 13."""
    mean, std = normalisation(tensor([[1, NAN], [3, 6], [8, 6]]))
    same(mean, [4, 6])
    same(std, [13**0.5, 1])


def test_too_few_scores_or_no_spread_leave_the_scale_alone():
    mean, std = normalisation(tensor([[2, NAN, 5, 0], [NAN, NAN, 5, 1e-7], [NAN, NAN, 5, 0]]))
    same(mean, [2, 0, 5, 1e-7 / 3])
    same(std, [1, 1, 1, 1])
    same(normalisation(tensor([[0], [2e-6]]))[1], [2e-6 / 2**0.5])


def test_reference_samples_come_out_at_mean_0_and_std_1_whatever_their_scale():
    torch.manual_seed(0)
    scores = torch.randn(50, 2) * torch.tensor([3.0, 100.0]) + torch.tensor([-7.0, 40.0])
    scores[::5, 0] = NAN
    result = normalise(scores, *normalisation(scores))
    assert result.dtype == torch.float64
    assert result.isnan().equal(scores.isnan())
    again = normalisation(result)
    same(again[0], [0, 0])
    same(again[1], [1, 1])
    rescaled = 2 * scores.double() + 5
    torch.testing.assert_close(normalise(rescaled, *normalisation(rescaled)), result, equal_nan=True)


def test_the_sum_by_hand():
    scores = tensor([[1, 10], [2, NAN], [NAN, 20], [NAN, NAN]])
    same(weighted_sum(scores, tensor([2, -0.5]), tensor([1.5, 15])), [-3, -3.5, -7, NAN])


def test_a_part_without_any_score_is_left_out():
    scores = tensor([[1, NAN], [NAN, NAN]])
    same(weighted_sum(scores, tensor([3, 5]), tensor([1, NAN])), [3, NAN])


def test_the_fallback_keeps_the_order_of_those_with_a_score():
    """A reply that a part cannot score stands between those that it likes and those that it does not."""
    scores = tensor([[0, -30], [0, NAN], [0, -10]])
    low, middle, high = weighted_sum(scores, tensor([1, 1]), tensor([0, -20])).tolist()
    assert (low, middle, high) == (-30, -20, -10)


def test_nothing_missing_needs_no_fallback():
    torch.manual_seed(0)
    scores, weights = torch.randn(6, 3), torch.tensor([1.0, 0.0, -2.0])
    result = weighted_sum(scores, weights, torch.full((3,), NAN))
    torch.testing.assert_close(result, scores.double() @ weights.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_taken_in_float64(dtype):
    scores = torch.tensor([[1.0, 1.0]], dtype=dtype)
    assert weighted_sum(scores, tensor([1, 1e-12]), tensor([0, 0])).item() == 1 + 1e-12
