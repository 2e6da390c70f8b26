"""The held-out preference pairs that reward models are measured on: read from a project's data, written for people."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlhf.config.project import ProjectConfig
from rlhf.data.checks import none_held_out
from rlhf.data.prepare import iter_records
from rlhf.data.records import Preference
from rlhf.data.splits import content_key
from rlhf.errors import UserError
from rlhf.evaluation.reward_model import Pairs
from rlhf.evaluation.stats import Floats
from rlhf.rewards.text import completion_text

PAIRS = 2000
"""Most held-out pairs scored: at this many the interval is 4 points wide at most."""


def held_out_pairs(project: ProjectConfig) -> Pairs:
    """The held-out preference pairs; of more than `PAIRS` a fixed choice, whatever their order.

    Raises:
        UserError: There is none.
    """
    kept: list[tuple[int, int, Preference]] = []  # a heap: what hashes highest goes first
    train: list[int] = []
    for number, (record, side) in enumerate(iter_records(project, "preferences")):
        assert isinstance(record, Preference)
        if side == "train":
            train.append(_longer(record))
            continue
        heapq.heappush(kept, (-_order_by_content(record), number, record))
        if len(kept) > PAIRS:
            heapq.heappop(kept)
    if not kept:
        raise no_pairs(project, len(train))
    records = [record for _, _, record in sorted(kept, key=lambda entry: entry[1])]
    return Pairs(records, np.array([_longer(record) for record in records], float), np.array(train, float))


def write_pairs(folder: Path, pairs: Pairs, margins: Mapping[str, Floats]) -> None:
    """Each pair with every model's margin, what has no score and what is most wrong first: that is where to look."""
    least_M = np.min([*margins.values()], axis=0)
    worst = np.argsort(np.where(np.isnan(least_M), -np.inf, least_M), kind="stable")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for place in worst:
            record = pairs.records[place]
            row = {
                "origin": record.origin,
                "margins": {
                    name: None if np.isnan(values[place]) else round(float(values[place]), 6)
                    for name, values in margins.items()
                },
                "length_difference": int(pairs.length_M[place]),
                "prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected,
            }  # fmt: skip
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def no_pairs(project: ProjectConfig, rows: int) -> UserError:
    """The error where no pair is held out.

    Args:
        project: The project.
        rows: Pairs there are, all of them to train on.
    """
    return UserError(
        f"{project.path}: no pair to judge the reward model by: {none_held_out('preferences', rows, project.holdout)}; "
        "give a larger holdout or more rows"
    )


def _longer(record: Preference) -> int:
    """By how many characters the chosen completion is longer."""
    return len(completion_text(record.chosen)) - len(completion_text(record.rejected))


def _order_by_content(record: Preference) -> int:
    """A number that follows from the content alone."""
    return int.from_bytes(content_key(record.prompt, record.chosen), "big")
