"""The labels of a sequence classifier, and the log odds of a label as a score."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf.errors import UserError, unknown_name


def label_number(label: int | str | None, names: Sequence[str], model: str) -> int | None:
    """Which output of a classifier is the score.

    Args:
        label: Number or name of a label; None for a reward model, which has only one.
        names: The labels' names, by number.
        model: What to call the model in a message.

    Returns:
        The label's number; None for a reward model.

    Raises:
        UserError: There is no such label, none is given although there are several, or one is given to a reward model.
    """
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(names[:12]))
    if len(names) == 1:
        if label is not None:
            raise UserError(f"{model}: has one label, so that there is none to choose: leave out label")
        return None
    if label is None:
        raise UserError(f"{model}: has {len(names)} labels; say which is wanted with label: {known}")
    if isinstance(label, int):
        if not 0 <= label < len(names):
            raise UserError(f"{model}: has no label {label}; known: {known}")
        return label
    if label not in names:
        raise UserError(f"{model}: has no label {label!r}; {unknown_name(label, names)}")
    return list(names).index(label)


def log_odds(logits_BC: torch.Tensor, label: int, multi_label: bool = False) -> torch.Tensor:
    """Log odds of a label, log(p / (1 - p)), computed from logits so that p is not rounded to 1.

    With a softmax they are z_label - logsumexp of the other logits z; where every label has a sigmoid of its own
    (`multi_label`), they are z_label.

    Args:
        logits_BC: Outputs of a classifier, batch by classes.
        label: The class, from 0 to C - 1.
        multi_label: Whether several labels can be true at once.

    Returns:
        Log odds, nats, of shape B.
    """
    if multi_label:
        return logits_BC[:, label]
    others = torch.cat([logits_BC[:, :label], logits_BC[:, label + 1 :]], dim=1)
    return logits_BC[:, label] - others.logsumexp(1)
