import functools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rlhf.objectives.masking import masked_mean, masked_moments, masked_sum, whiten

NINE = torch.tensor([1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0])
ALL = torch.ones(9, dtype=torch.bool)


@pytest.mark.parametrize(("unbiased", "first", "last"), [(True, 0.1394, 3.0606), (False, 0.0508, 3.1492)])
def test_the_numbers_of_huang_2023(unbiased, first, last):
    """Detail 13: PyTorch's variance and TensorFlow's give different rewards."""
    result = whiten(NINE, ALL, shift_mean=False, unbiased=unbiased)
    assert (result[0].item(), result[-1].item()) == pytest.approx((first, last), abs=5e-5)
    assert result.mean().item() == pytest.approx(1.6)


@pytest.mark.parametrize("unbiased", [True, False])
def test_mean_0_and_deviation_1(unbiased):
    torch.manual_seed(0)
    values, mask = 3 * torch.randn(6, 7) + 2, torch.rand(6, 7) < 0.6
    result = whiten(values, mask, unbiased=unbiased)
    assert result[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert result[mask].std(unbiased=unbiased).item() == pytest.approx(1, abs=1e-6)
    assert (result[~mask] == 0).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_masked_never_matters(poison):
    mask = torch.tensor([True, False, True, True])
    values = torch.tensor([1.0, poison, 2.0, 6.0])
    assert masked_sum(values, mask) == 9
    assert masked_mean(values, mask) == 3
    mean, variance = masked_moments(values, mask)
    assert (mean.item(), variance.item()) == pytest.approx((3, 7))
    expected = [-2 / 7**0.5, 0, -1 / 7**0.5, 3 / 7**0.5]
    assert whiten(values, mask).tolist() == pytest.approx(expected)
    assert whiten(values, mask, shift_mean=False)[1] == 0


def test_equal_values_become_0_and_too_few_do_no_harm():
    assert whiten(torch.full((2, 3), 5.0), torch.ones(2, 3, dtype=torch.bool)).abs().max() == 0
    assert whiten(NINE, ~ALL).tolist() == [0] * 9
    assert whiten(NINE, torch.arange(9) == 4).tolist() == [0] * 9
    assert masked_mean(NINE, ~ALL) == 0
    assert [float(one) for one in masked_moments(NINE, ~ALL)] == [0, 0]


def test_parts_with_a_global_denominator_add_up():
    """However a batch is cut, and though the parts hold different numbers of tokens."""
    torch.manual_seed(1)
    values, mask = torch.randn(8, 5), torch.rand(8, 5) < 0.5
    whole = masked_mean(values, mask)
    for denominator in (mask.sum(), float(mask.sum())):
        parts = [masked_mean(values[rows], mask[rows], denominator) for rows in (slice(0, 1), slice(1, 3), slice(3, 8))]
        torch.testing.assert_close(sum(parts), whole)


def test_two_processes_whiten_as_one():
    torch.manual_seed(2)
    values, mask = torch.randn(6, 4) + 10, torch.rand(6, 4) < 0.7
    for unbiased in (True, False):
        with ThreadPoolExecutor(2) as processes:
            whitened = functools.partial(whiten, unbiased=unbiased, reduce=summing(2))
            halves = list(processes.map(whitened, values.split([1, 5]), mask.split([1, 5])))
        torch.testing.assert_close(torch.cat(halves), whiten(values, mask, unbiased=unbiased))


def summing(count):
    """A `Reduce` over threads that stand for processes."""
    handed, barrier = [], threading.Barrier(count, timeout=60)

    def reduce(tensor):
        handed.append(tensor)
        barrier.wait()
        total = torch.stack(handed).sum(0)
        if barrier.wait() == 0:
            handed.clear()
        barrier.wait()
        return total

    return reduce


def test_a_large_mean_does_not_swallow_the_variance():
    values = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64) + 1e9
    mean, variance = masked_moments(values, torch.ones(3, dtype=torch.bool))
    assert (mean.item(), variance.item()) == pytest.approx((1e9 + 1, 1.0), rel=1e-12)
    shifted = whiten(NINE + 4096, ALL)  # exact in float32 up to 2^-12 · 2
    torch.testing.assert_close(shifted, whiten(NINE, ALL), atol=2e-3, rtol=0)


def test_types():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert whiten(NINE.to(dtype), ALL).dtype == expected
        assert masked_sum(NINE.to(dtype), ALL).dtype == expected
    thousands = torch.ones(3000, dtype=torch.bfloat16)
    assert masked_sum(thousands, torch.ones(3000, dtype=torch.bool)) == 3000
