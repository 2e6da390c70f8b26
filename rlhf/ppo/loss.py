"""The loss of a micro-batch: what the policy said of it, what the critic said of it, or both."""

from __future__ import annotations

import torch

from rlhf.objectives.losses import entropy_loss, policy_loss, value_loss
from rlhf.policies.protocol import Outputs
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.rollout import MicroBatch


def micro_batch_loss(
    batch: MicroBatch, outputs: Outputs, args: PPOConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Policy loss + `entropy_coef` · entropy loss + `vf_coef` · value loss, as far as their roles were asked.

    Args:
        batch: Its sequences, with the denominator of the whole optimizer step.
        outputs: What the roles say of it.
        args: Settings.

    Returns:
        The loss, and its parts for the log, by name; all are shares of the step's means.
    """
    loss, parts = torch.zeros((), device=batch.mask_BT.device), dict[str, torch.Tensor]()
    if outputs.log_probs_BT is not None:
        of_policy = policy_loss(
            outputs.log_probs_BT, batch.log_probs_BT, batch.advantages_BT, batch.mask_BT, args.cliprange, batch.tokens,
            batch.weights_BT,
        )  # fmt: skip
        loss = loss + of_policy.loss
        parts |= {f"policy/{name}": value for name, value in of_policy._asdict().items()}
    if outputs.entropies_BT is not None:
        loss = loss + args.entropy_coef * entropy_loss(outputs.entropies_BT, batch.mask_BT, batch.tokens)
    if outputs.values_BT is not None:
        assert batch.values_BT is not None
        of_critic = value_loss(
            outputs.values_BT, batch.values_BT, batch.returns_BT, batch.mask_BT, args.cliprange_value, batch.tokens
        )
        loss = loss + args.vf_coef * of_critic.loss
        parts |= {f"value/{name}": value for name, value in of_critic._asdict().items()}
    return loss, parts
