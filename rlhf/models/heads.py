"""The head of a reward model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def score_head(model: nn.Module) -> nn.Linear:
    """The last linear layer of a sequence classifier, whatever its architecture calls it.

    Raises:
        ValueError: The model has no such layer.
    """
    config: Any = model.config
    labels = config.num_labels
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == labels]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no linear layer with {labels} outputs")
    return heads[-1]


@torch.no_grad()
def init_score_head(model: PreTrainedModel) -> None:
    """Draw the weights of a new reward head from N(0, 1/(d + 1)), with d its input width, and set its bias to 0.

    On features of unit variance, scores then have about unit variance (Huang et al., "The N Implementation Details of
    RLHF with PPO", 2023: std 1/√(d+1)). The head is changed in place.
    """
    head = score_head(model)
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
