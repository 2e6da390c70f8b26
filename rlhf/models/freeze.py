"""Parts of a model that are not trained, named by patterns: a guard against forgetting."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from rlhf.errors import UserError, unknown_name


def frozen(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter's name has a part that matches a pattern.

    Args:
        name: Such as `bert.encoder.layer.0.output.dense.weight`.
        patterns: Regular expressions of one or several parts between dots, such as `encoder.layer.[0-3]`.
    """
    return any(re.search(rf"(^|\.)(?:{pattern})(\.|$)", name) for pattern in patterns)


def freeze_parameters(model: nn.Module, patterns: Sequence[str], where: str = "freeze") -> None:
    """Do not train the parameters that match a pattern, in place; adapters in a frozen part are frozen, too.

    Args:
        model: The model.
        patterns: As `frozen` takes them; none leave the model as it is.
        where: What to call the setting in a message.

    Raises:
        UserError: A pattern is no regular expression or matches nothing, or nothing would be trained.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        try:
            matches = any(frozen(name, [pattern]) for name in names)
        except re.error as error:
            raise UserError(f"{where}: {pattern!r} is no regular expression: {error}") from None
        if not matches:
            parts = sorted({part for name in names for part in name.split(".") if not part.isdecimal()})
            raise UserError(f"{where}: {pattern!r} matches no part of the model; {unknown_name(pattern, parts)}")
    for name, parameter in model.named_parameters():
        if frozen(name, patterns):
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{where}: nothing is left to train")
