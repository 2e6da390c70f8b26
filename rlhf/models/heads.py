"""The head of a reward model."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


def score_head(model: nn.Module) -> nn.Linear:
    """The last linear layer of a sequence classifier, whatever its architecture calls it.

    Raises:
        ValueError: The model has no such layer.
    """
    labels = model.config.num_labels
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == labels]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no linear layer with {labels} outputs")
    return heads[-1]


@torch.no_grad()
def init_score_head(model: PreTrainedModel) -> None:
    """Draw the weights of a new reward head from N(0, 1/(d + 1)), d its input width; set its bias to 0, in place.

    A head drawn so gives scores of about unit variance on unit-variance features (Huang et al., "The N Implementation
    Details of RLHF with PPO", 2023: std 1/√(d+1)).
    """
    head = score_head(model)
    nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
