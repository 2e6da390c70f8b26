"""What the policy wrote and what it was worth: everything that PPO's epochs read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf.prefix_sharing.layout import Folded, lay_out


@dataclass(frozen=True)
class Minibatch:
    """Sequences of a rollout, as one forward pass takes them; arrays [B, T] stop at their own longest reply."""

    folded: Folded
    mask_BT: torch.Tensor
    """Bool: tokens of replies that take part; false everywhere for one that could not be scored."""
    log_probs_BT: torch.Tensor
    advantages_BT: torch.Tensor
    returns_BT: torch.Tensor
    values_BT: torch.Tensor | None
    weights_BT: torch.Tensor | None
    tokens: float
    """Tokens that take part in the whole optimizer step, on all processes: the denominator of every mean."""

    def to(self, device: torch.device) -> Minibatch:
        """The same on a device."""
        return Minibatch(
            **{name: value.to(device) if hasattr(value, "to") else value for name, value in vars(self).items()}
        )


@dataclass(frozen=True)
class Rollout:
    """B = P · S replies, S to each of P prompts, in order: row p·S + s is reply s to prompt p.

    T is the longest reply. All arrays are on the CPU, in float32.
    """

    prompts: Sequence[Sequence[int]]
    """Token ids of each prompt."""
    replies: Sequence[Sequence[Sequence[int]]]
    """For each prompt the token ids of its replies."""
    mask_BT: torch.Tensor
    """Bool: tokens of replies that take part; false everywhere for one that could not be scored."""
    log_probs_BT: torch.Tensor
    """log π of the tokens when they were sampled, nats."""
    advantages_BT: torch.Tensor
    returns_BT: torch.Tensor
    values_BT: torch.Tensor | None = None
    """The critic's values when they were sampled; None without a critic."""
    weights_BT: torch.Tensor | None = None
    """Truncated importance weights, where another engine sampled."""
    pad: int = 0
    widest: int | None = None
    """Most tokens of a row that replies share (see `layout.lay_out`)."""

    def __post_init__(self) -> None:
        """Hold the shapes.

        Raises:
            ValueError: One is wrong.
        """
        sizes = {len(row) for row in self.replies}
        if len(self.prompts) != len(self.replies) or len(sizes) != 1:
            raise ValueError(
                f"{len(self.prompts)} prompts, {len(self.replies)} rows of replies of sizes {sorted(sizes)}"
            )
        lengths = [len(one) for row in self.replies for one in row]
        shape = (len(lengths), max(lengths))
        for name, value in vars(self).items():
            if name.endswith("_BT") and value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, expected {shape}")
        if self.mask_BT.dtype != torch.bool or bool((self.mask_BT.sum(1) > torch.tensor(lengths)).any()):
            raise ValueError("mask_BT must be bool, and true at most at the tokens of a reply")

    @property
    def samples(self) -> int:
        """Replies to a prompt."""
        return len(self.replies[0])

    def minibatch(self, rows: Sequence[int], tokens: float) -> Minibatch:
        """Some sequences; neighbours that answer the same prompt share it.

        Args:
            rows: Indices of sequences.
            tokens: The denominator of the optimizer step.
        """
        prompts: list[Sequence[int]] = []
        replies: list[list[Sequence[int]]] = []
        last = None
        for row in rows:
            group, sample = divmod(row, self.samples)
            if group != last:
                prompts.append(self.prompts[group])
                replies.append([])
                last = group
            replies[-1].append(self.replies[group][sample])
        folded = lay_out(prompts, replies, self.pad, self.widest)
        chosen = {
            name: value[list(rows), : folded.mask_BT.shape[1]]
            for name, value in vars(self).items()
            if name.endswith("_BT") and value is not None
        }
        return Minibatch(folded=folded, **{"values_BT": None, "weights_BT": None, **chosen}, tokens=tokens)

    def by_length(self, prompts: Sequence[int]) -> list[int]:
        """The rows of these prompts, groups together, shortest first, so that neighbours pad little."""
        size = {p: len(self.prompts[p]) + max(map(len, self.replies[p])) for p in prompts}
        ordered = sorted(prompts, key=lambda p: (size[p], p))
        return [p * self.samples + s for p in ordered for s in range(self.samples)]


def padded(rows: Sequence[Sequence[float]], width: int) -> torch.Tensor:
    """Rows of numbers as [B, width], float32, zeros behind."""
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float32)
