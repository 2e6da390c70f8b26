"""How much sampled advantage estimators vary where `exact` does not: noise of a label policy's gradient.

    python benchmarks/exact.py

A linear policy over 8 classes acts on 32 inputs; each answer's reward is a cost drawn once. Each estimator's policy
gradient is computed on 200 rollouts with the same number of forward passes, and held against the exact gradient.
"""

from __future__ import annotations

import argparse

import torch

from rlhf.objectives.advantages import ESTIMATORS
from rlhf.objectives.losses import action_weights, policy_loss
from rlhf.objectives.masking import whiten

INPUTS, CLASSES, FEATURES = 32, 8, 16


def gradient(
    name: str, weights: torch.Tensor, inputs_PF: torch.Tensor, rewards_PC: torch.Tensor, samples: int, seed: int
) -> torch.Tensor:
    """The policy gradient of one rollout, flattened."""
    weights = weights.clone().requires_grad_()
    log_probs_PC = (inputs_PF @ weights).log_softmax(-1)
    estimator = ESTIMATORS[name]
    if estimator.every_action:
        actions_PS = torch.arange(CLASSES).expand(INPUTS, -1)
    else:
        generator = torch.Generator().manual_seed(seed)
        actions_PS = torch.multinomial(log_probs_PC.detach().exp(), samples, replacement=True, generator=generator)
    log_probs_BT = log_probs_PC.gather(1, actions_PS).reshape(-1, 1)
    rewards_BT = rewards_PC.gather(1, actions_PS).reshape(-1, 1)
    mask_BT = torch.ones_like(rewards_BT, dtype=torch.bool)
    old_BT, group = log_probs_BT.detach(), actions_PS.shape[1]
    advantages_BT, _ = estimator.function(
        rewards_BT, None, mask_BT, 1.0, 1.0, group_size=group, log_probs_BT=old_BT
    )  # fmt: skip
    if name == "reinforce":  # whitening is its baseline; its scale is put back, so that gradients compare
        advantages_BT = whiten(advantages_BT, mask_BT) * advantages_BT.std()
    every = action_weights(old_BT, group if estimator.every_action else None, None, 1.0)
    policy_loss(log_probs_BT, old_BT, advantages_BT, mask_BT, 0.2, weights_BT=every).loss.backward()
    assert weights.grad is not None
    return weights.grad.flatten()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=200)
    count = parser.parse_args().rollouts
    torch.manual_seed(0)
    inputs_PF, weights = torch.randn(INPUTS, FEATURES), torch.randn(FEATURES, CLASSES) / 2
    rewards_PC = -torch.rand(INPUTS, CLASSES)
    exact = gradient("exact", weights, inputs_PF, rewards_PC, 1, 0)
    print("| Estimator | Answers an input | Noise, of the squared gradient | Mean against exact (cosine) |")
    print("|---|---|---|---|")
    print(f"| exact | all {CLASSES} | 0 | 1.00 |")
    for name, samples in (("reinforce", 1), ("reinforce", 8), ("rloo", 2), ("rloo", 8)):
        each = torch.stack([gradient(name, weights, inputs_PF, rewards_PC, samples, seed) for seed in range(count)])
        mean = each.mean(0)
        noise = (each - exact).square().sum(1).mean() / exact.square().sum()
        cosine = torch.nn.functional.cosine_similarity(mean, exact, dim=0)
        print(f"| {name} | {samples} | {noise:.2f} | {cosine:.2f} |")


if __name__ == "__main__":
    main()
