"""Sampled replies under the other roles: reference log-probabilities, values, and the scores of a reward adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from rlhf.models.roles import Roles
from rlhf.policies.completion import Completion
from rlhf.prefix_sharing.layout import lay_out

Groups = Sequence[Sequence[Completion]]
"""P prompts with S completions each; row p·S + s of the arrays is completion s of prompt p."""


class Measured(NamedTuple):
    """What the roles say of B completions of at most T tokens; CPU, float32, 0 behind a reply's end."""

    reference_BT: torch.Tensor
    """log π_ref, nats."""
    values_BS: torch.Tensor | None
    """The critic's value before each token and after the last, [B, T + 1]; None without a critic."""
    policy_BT: torch.Tensor | None
    """log π by the trainer's own forward pass, where another engine sampled."""


@torch.no_grad()
def measure(
    roles: Roles,
    prompts: Sequence[Sequence[int]],
    completions: Groups,
    pad: int,
    temperature: float,
    batch_size: int,
    exact: bool = True,
) -> Measured:
    """Score completions with reference and critic.

    Args:
        roles: The models.
        prompts: Token ids of each prompt.
        completions: For each prompt its completions.
        pad: Token that fills rows up.
        temperature: The sampling temperature.
        batch_size: Sequences a forward pass.
        exact: Whether the sampler's log-probabilities can stand for the trainer's; else they are computed too.
    """
    samples = len(completions[0])
    longest = max(len(one.ids) for row in completions for one in row)
    count = len(prompts) * samples
    reference_BT = torch.zeros(count, longest)
    values_BS = torch.zeros(count, longest + 1) if roles.has_critic else None
    policy_BT = None if exact else torch.zeros(count, longest)
    replies = [[one.ids for one in row] for row in completions]
    for chosen in _batches(prompts, replies, max(1, batch_size // samples)):
        rows = torch.tensor([p * samples + s for p in chosen for s in range(samples)])
        folded = lay_out([prompts[p] for p in chosen], [replies[p] for p in chosen], pad, roles.widest)
        folded = folded.to(roles.device)
        width = folded.mask_BT.shape[1]
        reference_BT[rows, :width] = roles.reference_log_probs(folded, temperature).cpu()
        if values_BS is not None:
            values_BS[rows, : width + 1] = roles.values(folded).cpu()
            values_BS[rows, width:] = values_BS[rows, width : width + 1]  # after the last token, to the end of the row
        if policy_BT is not None:
            policy_BT[rows, :width] = roles.policy_log_probs(folded, temperature).cpu()
    return Measured(reference_BT, values_BS, policy_BT)


@torch.no_grad()
def adapter_scores(
    roles: Roles,
    prompts: Sequence[Sequence[int]],
    completions: Groups,
    pad: int,
    endings: Sequence[Sequence[int]],
    batch_size: int,
    limit: int | None,
) -> list[float]:
    """Scores by the reward adapter on the policy's own base, on the sampled tokens themselves.

    A reply that was cut gets the end that every reply had in the reward model's training, so that the score is read at
    the same token.

    Args:
        roles: The models; they have a reward head.
        prompts: Token ids of each prompt.
        completions: For each prompt its completions.
        pad: Token that fills rows up.
        endings: For each prompt what follows the text of a reply (`Codec.ending`).
        batch_size: Sequences a forward pass.
        limit: Most tokens of a sequence; of a longer one the reply's end is cut.
    """
    samples = len(completions[0])
    scores = torch.zeros(len(prompts) * samples)
    replies = [
        [_closed(one, ending, None if limit is None else limit - len(prompt)) for one in row]
        for prompt, row, ending in zip(prompts, completions, endings, strict=True)
    ]
    for chosen in _batches(prompts, replies, max(1, batch_size // samples)):
        rows = torch.tensor([p * samples + s for p in chosen for s in range(samples)])
        folded = lay_out([prompts[p] for p in chosen], [replies[p] for p in chosen], pad, roles.widest)
        scores[rows] = roles.scores(folded.to(roles.device)).cpu()
    return scores.tolist()


def _closed(completion: Completion, ending: Sequence[int], room: int | None) -> list[int]:
    text = list(completion.ids)
    if completion.finished:  # what it wrote of the ending is not written twice
        written = (size for size in range(len(ending), 0, -1) if text[-size:] == list(ending[:size]))
        text = text[: -next(written, 1)]
    return [*text[: None if room is None else max(0, room - len(ending))], *ending]


def _batches(
    prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[Sequence[int]]], size: int
) -> Iterator[list[int]]:
    """Indices of prompts, `size` at a time, like lengths together."""
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]) + sum(map(len, replies[p])))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]
