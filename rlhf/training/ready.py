"""A stage made ready for its model: arguments settled, data tokenised."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from rlhf import processes
from rlhf.config import trainer_fields
from rlhf.data.prepare import Prepared, prepare
from rlhf.data.sets import source_set
from rlhf.data.splits import half_for
from rlhf.errors import UserError
from rlhf.models.tokenizer import tokenizer_record
from rlhf.policies.kinds import Encoder
from rlhf.training import tracking
from rlhf.training.defaults import DEFAULTS
from rlhf.training.reached import search_if_needed
from rlhf.training.starting_point import StartingPoint
from rlhf.workflow import StageContext

T = TypeVar("T", bound=Trainer)


@dataclass(frozen=True)
class Ready:
    """A stage with its arguments settled and its data tokenised: all but the model."""

    start: StartingPoint
    args: Any
    data: Prepared

    @property
    def eval_rows(self) -> Dataset | None:
        """Held-out rows, or None where there are none (TRL takes no empty set)."""
        return self.data.eval if len(self.data.eval) else None

    def trainer(self, kind: Callable[..., T], model: Any, **options: Any) -> T:
        """A trainer of this kind with the stage's arguments, rows and tokenizer.

        Args:
            kind: Its class.
            model: What it trains.
            options: What else it takes.
        """
        search_if_needed(self.args, model)
        return kind(
            model,
            args=self.args,
            train_dataset=self.data.train,
            eval_dataset=self.eval_rows,
            processing_class=self.start.processor,
            **options,
        )


def arguments(context: StageContext, start: StartingPoint) -> TrainingArguments:
    """The trainer's arguments: our defaults, the stage's own, then the YAML, then what the pipeline itself decides.

    `max_length` never goes above the positions the model has. What the trainer's own checks refuse, it raises.
    """
    state = processes.state()
    given = context.settings.trainer
    if given.get("save_only_model"):
        raise UserError(f"stages.{context.name}.save_only_model: no training could continue from such a checkpoint")
    reported = tracking.trainer_fields(context.project, context.name)
    fields = {**DEFAULTS, **reported, **context.stage.defaults, **given, "report_to": reported["report_to"]}
    on_gpu = state.device.type == "cuda"
    fields.setdefault("bf16", on_gpu and torch.cuda.is_bf16_supported() and not given.get("fp16"))
    fields.setdefault("dataloader_pin_memory", on_gpu)
    fields["use_cpu"] = state.device.type == "cpu"
    if fields["use_cpu"] and "paged" in str(fields.get("optim")):
        raise UserError(
            f"stages.{context.name}.optim: {fields['optim']} moves its state between a GPU and the memory of the "
            "machine, and this is a CPU; take adamw_torch, or adamw_bnb_8bit for a state in 8 bits"
        )
    for name, annotation in trainer_fields.trainer_fields(context.stage.name).items():
        if annotation.startswith("list[") and isinstance(fields.get(name), str):
            fields[name] = [fields[name]]
    fields.update(output_dir=str(context.directory / "checkpoints"), seed=context.project.stage_seed(context.name))
    module, _, kind = context.stage.trainer[-1].partition(":")
    args: Any = getattr(importlib.import_module(module), kind)(**fields)
    if start.context_length is not None:
        args.max_length = min(args.max_length or start.context_length, start.context_length)
    return args


def prepared_data(
    context: StageContext,
    start: StartingPoint,
    encoder: Encoder,
    keep_columns: bool = False,
) -> Prepared:
    """The stage's dataset, tokenised once (by the main process) and kept in its folder.

    Args:
        context: The stage.
        start: Its tokenizer or image processor is part of what identifies the tokenised data.
        encoder: Record to columns.
        keep_columns: Whether rewards will read the row's other columns.
    """
    role, project = context.stage.data, context.data_project
    assert role is not None
    try:
        source_set(project, role)
    except UserError as error:
        raise UserError(f"{error}; stages.{context.name} needs it") from None
    half = half_for(context.project, context.name)
    key = json.dumps([tokenizer_record(start.processor), encoder.settings, half], sort_keys=True)
    folder = context.directory / "data"
    return processes.main_first(
        lambda: prepare(project, role, encoder.encode, folder, keep_columns, key, encoder.ahead, half)
    )
