import math

import torch

from rlhf.objectives.kl import token_kl


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
