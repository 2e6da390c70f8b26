"""Rows that an export runs a model on: training rows for pruning, held-out ones for what the export costs."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from rlhf.config.project import ProjectConfig
from rlhf.data.checks import row_key
from rlhf.data.prepare import iter_records
from rlhf.data.records import Preference, Prompt, Record, Unusable, as_role
from rlhf.data.splits import Side
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models.load import context_length, model_config
from rlhf.models.tasks import is_encoder
from rlhf.policies.kinds import policy_kind
from rlhf.publish.build import Finished

ROWS = 128
"""Calibration rows, as many as in the paper of wanda."""
HELD_OUT = 200
"""Most held-out rows that a likelihood is taken of."""
_ROLES = ("demonstrations", "preferences", "feedback", "rollouts")


class Limits(NamedTuple):
    """What decides how a row is encoded, besides the model."""

    max_length: int | None
    truncation_mode: str = "keep_start"


def chosen_records(project: ProjectConfig, role: str, side: Side, most: int) -> list[Record]:
    """Records of one side of a set; of more than `most` a fixed choice, whatever their order."""
    entries = (
        (row_key(record), number, record)
        for number, (record, where) in enumerate(iter_records(project, role))
        if where == side
    )
    return [record for _, _, record in heapq.nsmallest(most, entries)]


def calibration_runs(
    project: ProjectConfig, whole: Finished, model: PreTrainedModel, rows: int = ROWS
) -> Iterator[Callable[[], Any]]:
    """Runs of a model on rows that the run trained on, prompts with their completions, each by itself.

    Args:
        project: The project.
        whole: The stage.
        model: Its model.
        rows: Most rows.

    Raises:
        UserError: The project has no such rows, or the model reads images.
    """
    if whole.task.images:
        raise UserError("--prune wanda: calibrates on text, and this model reads images; take --prune magnitude")
    roles = ("preferences",) if whole.opened.kind == "reward" else _ROLES
    role = next((role for role in roles if getattr(project.data, role) is not None), None)
    if role is None:
        raise UserError(f"{project.path}: --prune wanda calibrates on training rows, and data: has none")
    device = next(model.parameters()).device
    for record in chosen_records(project, role, "train", rows):
        for columns in _encoded(whole, record):
            inputs = {name: torch.tensor([ids], device=device) for name, ids in columns.items()}
            yield partial(model, **inputs)


def _encoded(whole: Finished, record: Record) -> list[dict[str, list[int]]]:
    """What the model reads of a record; nothing where it can read none of it."""
    opened = whole.opened
    config = model_config(opened.source)
    limits = Limits(context_length(config))
    try:
        if isinstance(record, Preference) and opened.kind == "reward":
            columns = Codec(opened.tokenizer, limits.max_length, encoder=is_encoder(config)).scored_pair(record).columns
            return [{"input_ids": ids} for ids in columns.values()]
        kind = policy_kind(opened)
        if isinstance(record, Prompt):  # nothing was written to it
            encoded = kind.prompts(None).encode(record)
        else:
            encoded = kind.demonstrations(limits).encode(as_role(record, "demonstrations"))
    except Unusable:
        return []
    names = ("input_ids", "labels") if config.is_encoder_decoder else ("input_ids", "prompt_ids")
    rows = encoded if isinstance(encoded, list) else [encoded]
    return [
        {name.replace("prompt_ids", "input_ids"): row.columns[name] for name in names if name in row.columns}
        for row in rows
    ]
