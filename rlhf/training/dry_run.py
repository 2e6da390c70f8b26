"""Makes a stage's trainer once before anything trains, so that settings it refuses are found now, not hours later.

The model has the real structure and no weights (torch's meta device): this takes as little time and memory for seven
billion parameters as for a million.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import Trainer
from transformers.integrations.liger import apply_liger_kernel

from rlhf.models.load import model_config
from rlhf.training.ready import Ready
from rlhf.training.starting_point import StartingPoint, adapted

_ROWS = 2
_STEPS = 10


def try_trainer(ready: Ready, make: Callable[[Ready, Any], Trainer], labels: int | None = None) -> None:
    """Make a trainer, its optimizer and its learning-rate schedule with a model without weights and two rows.

    Whatever a library raises passes; the caller turns it into one line.

    Args:
        ready: The stage's arguments and data.
        make: Makes the trainer from these and a model.
        labels: Outputs of the head, where the stage's task leaves that open.
    """
    few = [rows.select(range(min(_ROWS, len(rows)))) for rows in (ready.data.train, ready.data.eval)]
    ready = replace(ready, data=replace(ready.data, train=few[0], eval=few[1]))
    ready.args._n_gpu = 1  # TRL refuses several GPUs in one process; the stage may be given one for each
    with torch.device("meta"):
        trainer = make(ready, weightless(ready, labels))
    if ready.args.use_liger_kernel:
        apply_liger_kernel(trainer.model, ready.args.liger_kernel_config)
    model: Any = trainer.model
    kind, options = Trainer.get_optimizer_cls_and_kwargs(ready.args, model)
    if not {"params", "model", "optimizer_dict"} & options.keys():  # else it is made for the weights themselves
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
        trainer.create_scheduler(_STEPS, optimizer)


def weightless(ready: Ready, labels: int | None = None) -> Any:
    """The model that a stage trains, its fresh adapter included, on the meta device.

    Args:
        ready: What the stage starts from.
        labels: Outputs of the head, where the stage's task leaves that open.
    """
    with torch.device("meta"):
        model = adapted(_structure(ready.start, labels), ready.start, ready.args)
    model.to = lambda *_, **__: model  # trainers move their model, and a meta tensor cannot be moved
    return model


def _structure(start: StartingPoint, labels: int | None) -> Any:
    config = model_config(start.source)
    options: dict[str, Any] = {"dtype": getattr(torch, start.config.dtype)}
    if start.config.attn_implementation:
        options["attn_implementation"] = start.config.attn_implementation
    labels = start.task.outputs if labels is None else labels
    if labels is not None:
        config.num_labels = labels
    return start.task.model_class.from_config(config, **options)
