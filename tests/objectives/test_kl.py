import math

import pytest
import torch

from rlhf.objectives.kl import KL_ESTIMATORS, adapt_kl_coefficient, k1, k2, k3, token_kl

P, Q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.25, 0.25, 0.3, 0.2])


def test_a_hand_number():
    """Of p = (3/4, 1/4), q = (1/2, 1/2): 0.75 ln 1.5 + 0.25 ln 0.5."""
    p = torch.tensor([[[0.75, 0.25]]]).log()
    q = torch.tensor([[[0.5, 0.5]]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    torch.testing.assert_close(token_kl(p, q), torch.tensor([[expected]]))
    backwards = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    torch.testing.assert_close(token_kl(q, p), torch.tensor([[backwards]]))


def test_never_negative_and_blind_to_shifts():
    torch.manual_seed(0)
    p, q = torch.randn(2, 4, 5, 50)
    assert (token_kl(p, q) > 0).all()
    torch.testing.assert_close(token_kl(p, q), token_kl(p + 7, q - 3))
    torch.testing.assert_close(token_kl(p, p), torch.zeros(4, 5))


def test_tokens_that_are_ruled_out():
    """By p, or by both: they count nothing. By q alone: it is infinitely far."""
    out = -math.inf
    p = torch.tensor([[[0.0, 0.0, out, out]]])
    both = torch.tensor([[[math.log(3), 0.0, out, out]]])
    none = torch.tensor([[[math.log(3), 0.0, 0.0, 0.0]]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert token_kl(p, both).item() == pytest.approx(expected)
    assert token_kl(p, none).item() == pytest.approx(expected + math.log(6 / 4))
    assert token_kl(none, p).item() == math.inf


def test_estimates_of_one_token():
    """A token of probability 1/2 under p and 1/4 under q, and the other way round."""
    half, quarter = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    result = {name: (one(half, quarter).item(), one(quarter, half).item()) for name, one in KL_ESTIMATORS.items()}
    assert result["k1"] == pytest.approx((0.693147, -0.693147), abs=1e-6)
    assert result["k2"] == pytest.approx((0.240227, 0.240227), abs=1e-6)
    assert result["k3"] == pytest.approx((0.193147, 0.306853), abs=1e-6)


def test_k2_and_k3_are_never_negative():
    torch.manual_seed(0)
    p, q = 5 * torch.randn(2, 20, 50)
    for one in (k2, k3):
        assert (one(p, q) >= 0).all()
        assert (one(p, p) == 0).all()
    assert (k1(p, q) < 0).any()


def test_a_tiny_difference_is_not_rounded_away():
    """(r − 1) − log r is about δ²/2."""
    assert k3(torch.zeros(1, 1), torch.tensor([[1e-3]])).item() == pytest.approx(5.0017e-7, rel=1e-2)


def test_what_is_expected_of_the_estimates():
    """Exact sums over a small vocabulary: k1 and k3 are unbiased, k2 is not."""
    kl = token_kl(P.log()[None, None], Q.log()[None, None]).item()
    expected = {name: (P * one(P.log(), Q.log())).sum().item() for name, one in KL_ESTIMATORS.items()}
    assert expected["k1"] == pytest.approx(kl, rel=1e-5)
    assert expected["k3"] == pytest.approx(kl, rel=1e-5)
    assert expected["k2"] != pytest.approx(kl, rel=0.05)
    near = P * (1 + 0.02 * torch.tensor([1.0, -1, -1, 1]))
    near = near / near.sum()
    kl = token_kl(P.log()[None, None], near.log()[None, None]).item()
    assert (P * k2(P.log(), near.log())).sum().item() == pytest.approx(kl, rel=0.02)


@pytest.mark.parametrize(
    ("kl", "episodes", "expected"),
    [
        (6.0, 10_000, 0.15),  # the target is hit
        (6.6, 10_000, 0.165),  # a tenth too much
        (5.4, 10_000, 0.135),
        (60.0, 10_000, 0.18),  # no more than a fifth at once
        (0.0, 10_000, 0.12),
        (-3.0, 10_000, 0.12),
        (60.0, 100, 0.1503),  # a hundredth of the horizon
    ],
)
def test_the_coefficient_follows_the_target(kl, episodes, expected):
    assert adapt_kl_coefficient(0.15, kl, 6.0, episodes, 10_000) == pytest.approx(expected)


def test_a_rollout_larger_than_the_horizon_moves_the_coefficient_by_a_fifth_at_most():
    assert adapt_kl_coefficient(1.0, 0.0, 6.0, 1000, 100.0) == pytest.approx(0.8)
    assert adapt_kl_coefficient(1.0, 60.0, 6.0, 1000, 100.0) == pytest.approx(1.2)
