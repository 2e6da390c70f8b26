import math
import random

import pytest
import torch

from rlhf.objectives.advantages import ESTIMATORS
from rlhf.objectives.losses import action_weights, bradley_terry_loss, entropy_loss, policy_loss, value_loss

ONE = torch.ones(1, 1, dtype=torch.bool)


def one(value):
    return torch.tensor([[value]], requires_grad=True)


def test_ratio_1_gives_minus_the_mean_advantage():
    torch.manual_seed(0)
    log_probs, advantages, mask = torch.randn(3, 4), torch.randn(3, 4), torch.rand(3, 4) < 0.7
    outcome = policy_loss(log_probs, log_probs.clone(), advantages, mask, 0.2)
    torch.testing.assert_close(outcome.loss, -advantages[mask].mean())
    assert (outcome.ratio.item(), outcome.clipfrac.item(), outcome.approxkl.item()) == (1, 0, 0)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        (2.0, 1.1, -2.2, -2.2),  # within: −ρA
        (2.0, 1.5, -2.4, 0.0),  # a good token already likelier by half: −1.2 A, and no more push
        (2.0, 0.5, -1.0, -1.0),  # a good token that became rarer is pushed
        (-2.0, 0.9, 1.8, 1.8),
        (-2.0, 0.5, 1.6, 0.0),  # a bad token already halved: −0.8 A
        (-2.0, 1.5, 3.0, 3.0),  # a bad token that became likelier is pushed back, unclipped
    ],
)
def test_regions_of_the_policy_loss(advantage, ratio, loss, slope):
    log_prob = one(math.log(ratio) - 3)
    outcome = policy_loss(log_prob, torch.tensor([[-3.0]]), torch.tensor([[advantage]]), ONE, 0.2)
    outcome.loss.backward()
    assert outcome.loss.item() == pytest.approx(loss, rel=1e-5)
    assert log_prob.grad.item() == pytest.approx(slope, rel=1e-5)
    assert outcome.clipfrac.item() == float(slope == 0)
    assert outcome.ratio.item() == pytest.approx(ratio, rel=1e-5)
    assert outcome.approxkl.item() == pytest.approx(math.log(ratio) ** 2 / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        (1.1, 0.405, -0.9),  # V_old 1, R 2, within 0.2: half of 0.9²
        (1.5, 0.32, 0.0),  # ran ahead towards R: as if at 1.2
        (0.5, 1.125, -1.5),  # ran away from R: no clip
        (4.0, 2.0, 2.0),  # beyond R and farther off than 1.2
    ],
)
def test_regions_of_the_value_loss(value, loss, slope):
    values = one(value)
    outcome = value_loss(values, torch.tensor([[1.0]]), torch.tensor([[2.0]]), ONE, 0.2)
    outcome.loss.backward()
    assert outcome.loss.item() == pytest.approx(loss, rel=1e-5)
    assert values.grad.item() == pytest.approx(slope, abs=1e-5)
    assert outcome.clipfrac.item() == float(slope == 0)


def test_entropy_is_raised():
    entropies = torch.tensor([[1.0, 3.0, 50.0]], requires_grad=True)
    loss = entropy_loss(entropies, torch.tensor([[True, True, False]]))
    loss.backward()
    assert loss.item() == -2
    assert entropies.grad.tolist() == [[-0.5, -0.5, 0]]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_masked_harms_neither_loss_nor_gradient(poison):
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clean = [torch.randn(2, 3) for _ in range(4)]
    results = []
    for junk in (0.0, poison):
        new, values, third, fourth = (tensor.masked_fill(~mask, junk) for tensor in clean)
        new.requires_grad_()
        values.requires_grad_()
        losses = [
            policy_loss(new, third, fourth, mask, 0.2, weights_BT=fourth.abs()),
            value_loss(values, third, fourth, mask, 0.2),
        ]
        total = losses[0].loss + losses[1].loss + entropy_loss(new, mask)
        total.backward()
        results.append([total.detach(), new.grad, values.grad, *(x.detach() for outcome in losses for x in outcome)])
    for expected, outcome in zip(*results, strict=True):
        assert torch.equal(expected, outcome)
    assert (results[1][1][~mask] == 0).all()
    assert results[1][1][mask].abs().min() > 0


def test_an_empty_batch_costs_nothing():
    values = torch.randn(2, 3, requires_grad=True)
    none = torch.zeros(2, 3, dtype=torch.bool)
    total = policy_loss(values, values.detach(), values.detach(), none, 0.2).loss + entropy_loss(values, none)
    (total + value_loss(values, values.detach(), values.detach(), none, 0.2).loss).backward()
    assert total == 0
    assert values.grad.abs().max() == 0


def test_importance_weights():
    """Each token, clipped or not, counts by its weight; the denominator stays the number of tokens."""
    ratios, advantages = torch.tensor([[1.0, 1.5, 1.0]]), torch.tensor([[1.0, 1.0, 4.0]])
    mask, weights = torch.tensor([[True, True, False]]), torch.tensor([[2.0, 0.5, 9.0]])
    outcome = policy_loss(ratios.log(), torch.zeros(1, 3), advantages, mask, 0.2, weights_BT=weights)
    assert outcome.loss.item() == pytest.approx(-(2.0 * 1 + 0.5 * 1.2) / 2)
    assert outcome.ratio.item() == pytest.approx((2.0 * 1 + 0.5 * 1.5) / 2)
    assert outcome.clipfrac.item() == 0.25


def test_parts_with_a_global_denominator_add_up():
    """Losses and gradients of three unequal parts are those of the whole."""
    torch.manual_seed(2)
    mask = torch.arange(6)[None] < torch.tensor([6, 1, 3, 2, 5])[:, None]
    old, returns, old_values = torch.randn(3, 5, 6)
    new, values = (old + torch.randn(5, 6) / 3).requires_grad_(), torch.randn(5, 6, requires_grad=True)

    def loss(rows, denominator):
        part = [tensor[rows] for tensor in (new, old, returns, mask, values, old_values)]
        policy = policy_loss(*part[:4], 0.2, denominator)
        value = value_loss(part[4], part[5], part[2], part[3], 0.2, denominator)
        return torch.stack(
            [policy.loss + value.loss + entropy_loss(part[0], part[3], denominator), *policy[1:], value.clipfrac]
        )

    whole = loss(slice(None), None)
    cuts = (slice(0, 1), slice(1, 4), slice(4, 5))
    parts = sum(loss(rows, float(mask.sum())) for rows in cuts)
    torch.testing.assert_close(parts, whole)
    for expected, outcome in zip(*(torch.autograd.grad(x[0], (new, values)) for x in (whole, parts)), strict=True):
        torch.testing.assert_close(outcome, expected)


def by_hand(logits, values, tokens, old, advantages, old_values, returns, lengths, settings):
    """What PPO minimises, −(L^CLIP − c₁ L^VF + c₂ S) of Schulman et al. (2017), eq. 9, token by token.

    L^CLIP is eq. 7; L^VF is the squared error, halved, with the clipped value where that is worse.
    """
    clip, value_clip, value_coef, entropy_coef = settings
    surrogate = squared = entropy = 0.0
    for b, length in enumerate(lengths):
        for t in range(length):
            total = sum(math.exp(logit) for logit in logits[b][t])
            probs = [math.exp(logit) / total for logit in logits[b][t]]
            ratio = probs[tokens[b][t]] / math.exp(old[b][t])
            trusted = min(max(ratio, 1 - clip), 1 + clip)
            surrogate += min(ratio * advantages[b][t], trusted * advantages[b][t])
            low, high = old_values[b][t] - value_clip, old_values[b][t] + value_clip
            near = min(max(values[b][t], low), high)
            squared += max((values[b][t] - returns[b][t]) ** 2, (near - returns[b][t]) ** 2) / 2
            entropy -= sum(p * math.log(p) for p in probs)
    return -(surrogate - value_coef * squared + entropy_coef * entropy) / sum(lengths)


@pytest.mark.parametrize("seed", range(30))
def test_against_a_plain_loop_and_finite_differences(seed):
    torch.manual_seed(seed)
    draw, rows, width, words = random.Random(seed), 2, 3, 3
    lengths = [draw.randint(1, width) for _ in range(rows)]
    settings = (draw.uniform(0.1, 0.3), draw.uniform(0.1, 0.5), 0.1, 0.01)
    logits = torch.randn(rows, width, words, dtype=torch.float64, requires_grad=True)
    values = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(words, (rows, width))
    advantages, old_values, returns, change = torch.randn(4, rows, width, dtype=torch.float64)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(-1, tokens[..., None]).squeeze(-1)
    old = (chosen + change / 3).detach()

    loss = policy_loss(chosen, old, advantages, mask, settings[0]).loss
    loss = loss + settings[2] * value_loss(values, old_values, returns, mask, settings[1]).loss
    loss = loss + settings[3] * entropy_loss(-(log_probs.exp() * log_probs).sum(-1), mask)
    loss.backward()

    fixed = [tensor.tolist() for tensor in (tokens, old, advantages, old_values, returns)]
    fixed += [lengths, settings]
    assert loss.item() == pytest.approx(by_hand(logits.tolist(), values.tolist(), *fixed), rel=1e-12)
    for tensor in (logits, values):
        flat = tensor.detach().view(-1)
        for index in range(len(flat)):
            kept, around = flat[index].item(), []
            for step in (1e-6, -1e-6):
                flat[index] = kept + step
                around.append(by_hand(logits.tolist(), values.tolist(), *fixed))
            flat[index] = kept
            slope = (around[0] - around[1]) / 2e-6
            assert tensor.grad.view(-1)[index].item() == pytest.approx(slope, abs=1e-7)


def test_the_bradley_terry_loss_of_hand_numbers():
    """Odds of 3 to 1 for the chosen side, then against it: log(4/3) and log(4)."""
    chosen = torch.tensor([math.log(3) + 5, -2.0], requires_grad=True)
    rejected = torch.tensor([5.0, math.log(3) - 2], requires_grad=True)
    loss = bradley_terry_loss(chosen, rejected)
    loss.backward()
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, rel=1e-5)
    assert chosen.grad.tolist() == pytest.approx([-1 / 8, -3 / 8], rel=1e-5)  # minus the other side's chance, halved
    assert rejected.grad.tolist() == pytest.approx([1 / 8, 3 / 8], rel=1e-5)


def test_the_bradley_terry_loss_has_no_zero_and_no_overflow():
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    torch.testing.assert_close(bradley_terry_loss(chosen + 7, rejected + 7), bradley_terry_loss(chosen, rejected))
    assert bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == 1000
    assert bradley_terry_loss(torch.zeros(1).bfloat16(), torch.zeros(1).bfloat16()).dtype == torch.float32
    assert bradley_terry_loss(chosen.double(), rejected.double()).dtype == torch.float64


def test_actions_weigh_as_often_as_they_are_taken():
    chances = torch.tensor([[0.5], [0.3], [0.2]])
    assert action_weights(chances.log(), 3, None, 2.0).flatten().tolist() == pytest.approx([1.5, 0.9, 0.6])
    other = torch.tensor([[0.25], [0.3], [0.05]])
    assert action_weights(chances.log(), None, other.log(), 3.0).flatten().tolist() == pytest.approx([2.0, 1.0, 3.0])
    assert action_weights(chances.log(), None, None, 3.0) is None


def test_weighted_statistics_are_those_of_what_the_policy_takes():
    """Over every action, weighted by n · π_old, the mean ratio is Σ π_old · π/π_old = 1 wherever the policy went."""
    old, new = torch.tensor([[0.5], [0.3], [0.2]]), torch.tensor([[0.1], [0.3], [0.6]])
    weights = action_weights(old.log(), 3, None, 2.0)
    mask = torch.ones(3, 1, dtype=torch.bool)
    terms = policy_loss(new.log(), old.log(), torch.zeros(3, 1), mask, 0.2, weights_BT=weights)
    assert terms.ratio.item() == pytest.approx(1.0)
    assert terms.clipfrac.item() == 0.0


def test_exact_is_the_mean_of_what_samples_estimate():
    """Over every pair of answers, each as often as it is drawn, RLOO's gradient is that of the expected reward."""
    logits, rewards = torch.tensor([0.4, -0.3, 0.9]), torch.tensor([1.0, -2.0, 0.5])
    mask = torch.ones(3, 1, dtype=torch.bool)

    def gradient(name, actions, weights=None):
        moving = logits.clone().requires_grad_()
        log_probs = moving.log_softmax(-1)[actions][:, None]
        given = rewards[actions][:, None], None, mask[: len(actions)], 1.0, 1.0
        old = log_probs.detach()
        advantages, _ = ESTIMATORS[name].function(*given, group_size=len(actions), log_probs_BT=old)
        policy_loss(log_probs, old, advantages, given[2], 0.2, weights_BT=weights).loss.backward()
        return moving.grad

    chances = logits.softmax(-1)
    pairs = [(a, b) for a in range(3) for b in range(3)]
    sampled = sum(chances[a] * chances[b] * gradient("rloo", torch.tensor([a, b])) for a, b in pairs)
    whole = gradient("exact", torch.arange(3), action_weights(chances.log()[:, None], 3, None, 1.0))
    torch.testing.assert_close(whole, sampled)
    moving = logits.clone().requires_grad_()
    (-(moving.softmax(-1) * rewards).sum()).backward()
    torch.testing.assert_close(whole, moving.grad)
