"""TRL's RewardTrainer with what saves time."""

from __future__ import annotations

import trl

from rlhf.trl_trainers.speedups import FasterTrainer


class RewardTrainer(FasterTrainer, trl.RewardTrainer):
    """TRL's trainer, which computes what the two sides of a pair share once."""

    group_size = 2
    fused_head = False
