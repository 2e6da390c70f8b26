"""A policy's replies to many prompts with their scores, in a file that grows: what was sampled is not sampled again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from rlhf import processes, progress
from rlhf.data.records import Prompt, Text
from rlhf.evaluation.judges import CachedScores, score
from rlhf.evaluation.kept import grow
from rlhf.evaluation.samples import SampledCompletion
from rlhf.policies.completion import row_seed
from rlhf.rewards import RewardFunction
from rlhf.rewards.compose import Rewards, score_matrix


class Replies(TypedDict):
    """A line of the file: a prompt and what the policy wrote."""

    origin: str
    """File and line that the prompt is from."""
    prompt: Text
    """Text, or messages."""
    columns: dict[str, Any]
    """The other columns of the prompt's row."""
    replies: list[SampledCompletion]
    """What it wrote, as often as it was sampled."""


def sample_replies(
    path: Path, policy: Any, inputs: Sequence[Any], origins: Sequence[str], judges: Mapping[str, RewardFunction],
    *, samples: int, at_once: int, seed: int,
) -> None:  # fmt: skip
    """Have a policy reply to prompts and judges score the replies; each prompt is a line of a file, in order.

    An interrupted call goes on behind the last batch that is there whole, and the file becomes the same: batches are
    cut at the same places, and a reply depends on its prompt and its seed alone. Each process of a launch replies to
    its share of the prompts and scores what it wrote.

    Args:
        path: The file.
        policy: Writes (`policies.protocol.Policy`).
        inputs: What it replies to.
        origins: Where each is from.
        judges: By name.
        samples: Replies a prompt.
        at_once: Prompts of a batch.
        seed: Of the sampling.
    """

    def made(first: int, last: int) -> list[Replies]:
        batch = inputs[first:last]
        seeds = [[row_seed(seed, "rank", place, number) for number in range(samples)] for place in range(first, last)]
        groups = [
            [
                SampledCompletion(text=reply.text, tokens=len(reply.ids), finished=reply.finished, kl=None, scores={})
                for reply in group
            ]
            for group in policy.sample(batch, seeds)
        ]
        asked = [Prompt(row.prompt, row.columns) for row in batch]
        with torch.autocast(policy.device.type, enabled=False):
            score(groups, asked, {name: CachedScores(judge) for name, judge in judges.items()})
        return [
            Replies(origin=origin, prompt=row.prompt, columns=row.columns, replies=group)
            for origin, row, group in zip(origins[first:last], batch, groups, strict=True)
        ]

    count = len(inputs)
    with progress.bar("replies", count, "prompts", shown=processes.is_main(), delay=2) as bar:
        done = 0
        for file in grow(path, count, at_once, made):
            bar.update(file.done - done)
            done = file.done


def read_replies(path: Path) -> Iterator[Replies]:
    """The lines of the file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def total_scores(path: Path, weights: Mapping[str, float]) -> list[list[float]]:
    """One score a reply, those of each prompt together; NaN where no judge gave one.

    A single reward counts as it is; each of several is brought to mean 0 and standard deviation 1 over all replies.

    Args:
        path: The file.
        weights: Of each reward.
    """
    sizes, given = [], {name: list[float | None]() for name in weights}
    for line in read_replies(path):
        sizes.append(len(line["replies"]))
        for name, scores in given.items():
            scores += [reply["scores"].get(name) for reply in line["replies"]]
    scores_BK = score_matrix(list(given.values()))
    rewards = Rewards(dict.fromkeys(weights), {name: float(weight) for name, weight in weights.items()})
    if len(weights) > 1:
        rewards.fit_scale(scores_BK)
    totals = rewards.total(scores_BK, lambda tensor: tensor).tolist()
    ends = list(itertools.accumulate(sizes, initial=0))
    return [totals[begin:end] for begin, end in itertools.pairwise(ends)]
