"""Pruning without training: which weights of a linear layer are set to zero, by their size or by what they carry.

Axes: O outputs, I inputs of a layer, N tokens of the calibration rows. Embeddings and what stands above the backbone
(the language model's head, a score) are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.errors import UserError

Method = Literal["magnitude", "wanda"]
METHODS: tuple[Method, ...] = ("magnitude", "wanda")
_OF = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class Pruning:
    """How a model is pruned."""

    method: Method
    sparsity: float
    """Share of each row's weights that are set to zero."""
    group: int | None = None
    """How many neighbouring inputs share that out among them, as in 2 of 4; None for the whole row."""

    def __str__(self) -> str:
        """As a card says it."""
        if self.group is None:
            return f"{self.method}, {self.sparsity:.0%} zeros in each row"
        return f"{self.method}, {round(self.sparsity * self.group)} zeros in every {self.group} inputs"


class Counted(NamedTuple):
    """What pruning has set to zero."""

    layers: int
    """Linear layers."""
    zeros: float
    """Share of zeros in them."""
    zeros_of_all: float
    """Share of zeros of all weights."""


def pruning(method: str | None, sparsity: str | None) -> Pruning | None:
    """The pruning that two options ask for; None where they ask for none.

    Args:
        method: magnitude or wanda.
        sparsity: A share such as `0.5`, or `2:4` for two zeros in every four neighbouring inputs; None is 0.5.

    Raises:
        UserError: They mean nothing.
    """
    if method is None:
        if sparsity is not None:
            raise UserError(f"--sparsity: goes with --prune {' or '.join(METHODS)}")
        return None
    if method not in METHODS:
        raise UserError(f"--prune: unknown {method!r}; known: {', '.join(METHODS)}")
    text = "0.5" if sparsity is None else sparsity
    if match := _OF.fullmatch(text):
        zeros, group = int(match[1]), int(match[2])
        if not 0 < zeros < group:
            raise UserError(f"--sparsity: {text}: expected fewer zeros than inputs, such as 2:4")
        return Pruning(method, zeros / group, group)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(f"--sparsity: expected a share between 0 and 1, or one such as 2:4, not {text!r}")
    return Pruning(method, share)


def kept(score_OI: torch.Tensor, how: Pruning) -> torch.Tensor:
    """Which weights stay: in each row, or each group of its inputs, all but the floor(sparsity · I) lowest scores.

    Of equal scores the first are pruned, so that the result does not depend on the machine.

    Args:
        score_OI: Of each weight.
        how: The share, and the group; where the last group is not full, it stays whole.

    Returns:
        Booleans like the scores.
    """
    outputs, inputs = score_OI.shape
    size = how.group or inputs
    whole = inputs // size * size
    groups = score_OI[:, :whole].reshape(outputs, -1, size)
    zeros = int(how.sparsity * size + 1e-9)
    lowest = groups.argsort(dim=-1, stable=True)[..., :zeros]
    stay = torch.ones_like(score_OI, dtype=torch.bool)
    stay[:, :whole] = torch.ones_like(groups, dtype=torch.bool).scatter(-1, lowest, False).view(outputs, whole)
    return stay


def score(weight_OI: torch.Tensor, norm_I: torch.Tensor | None) -> torch.Tensor:
    """What decides which weights go: |W|, or |W_oi| · ‖x_i‖₂.

    Source: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", equation 1.

    Args:
        weight_OI: The weights.
        norm_I: Norm of each input over all tokens of the calibration rows; None for the size alone.
    """
    size_OI = weight_OI.abs().float()
    return size_OI if norm_I is None else size_OI * norm_I


def linear_layers(model: PreTrainedModel) -> dict[str, Any]:
    """The linear layers of a model's backbone, by name.

    The language model's head is left out wherever it stands: a T5 is its own backbone, and its head may be tied to the
    embeddings.
    """
    backbone: Any = model.base_model
    outside = (model.get_input_embeddings(), model.get_output_embeddings())
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(module is other for other in outside)
    }


def check_prunes(model: PreTrainedModel, how: Pruning) -> None:
    """Check that a share is large enough to set a weight of each layer to zero.

    Raises:
        UserError: It is not, or no row of a layer has so many inputs as a group.
    """
    rows = [layer.weight.shape[0 if isinstance(layer, Conv1D) else 1] for layer in linear_layers(model).values()]
    shortest = min(rows, default=0)
    size = how.group or shortest
    if size > shortest or not int(how.sparsity * size + 1e-9):
        wanted = "a larger share" if how.group is None else "a smaller group"
        raise UserError(f"--sparsity: sets nothing to zero in rows of {shortest} inputs; take {wanted}")


@torch.no_grad()
def input_norms(model: PreTrainedModel, runs: Iterable[Callable[[], Any]]) -> tuple[dict[str, torch.Tensor], int]:
    """Norm of each input of each linear layer over all tokens that pass through it.

    ‖x_i‖₂ = sqrt(Σ_n x_ni²), summed in float64. The layers see the unpruned model's inputs; the paper prunes block
    after block and has each see what the pruned ones before it give.

    Args:
        model: The model.
        runs: Each runs it on one row, without padding.

    Returns:
        By the layer's name, [I]; and the number of rows.
    """
    sums: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares_I = inputs[0].detach().double().flatten(0, -2).pow(2).sum(0).cpu()
            sums[name] = sums[name] + squares_I if name in sums else squares_I

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in linear_layers(model).items()]
    training, rows = model.training, 0
    model.eval()
    try:
        for run in runs:
            run()
            rows += 1
    finally:
        for handle in hooks:
            handle.remove()
        model.train(training)
    return {name: squares_I.sqrt().float() for name, squares_I in sums.items()}, rows


@torch.no_grad()
def prune(model: PreTrainedModel, how: Pruning, norms: Mapping[str, torch.Tensor] | None = None) -> Counted:
    """Set weights to zero, in place.

    Args:
        model: The model.
        how: Which, and how many.
        norms: What `input_norms` gave, for wanda. A layer that no row reached is pruned by size.

    Returns:
        How many zeros that made.
    """
    zeros = weights = 0
    layers = linear_layers(model)
    for name, layer in layers.items():
        turned = isinstance(layer, Conv1D)  # whose weights are [I, O]
        parameter: Any = layer.weight
        weight_OI = parameter.t() if turned else parameter
        norm_I = None if norms is None or name not in norms else norms[name].to(parameter.device)
        weight_OI.mul_(kept(score(weight_OI, norm_I), how))
        zeros += int((parameter == 0).sum())
        weights += parameter.numel()
    of_all = sum(each.numel() for each in model.parameters())
    return Counted(len(layers), zeros / max(1, weights), zeros / of_all)
