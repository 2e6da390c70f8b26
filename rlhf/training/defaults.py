"""What a stage's trainer is set to where its YAML is silent; imports nothing heavy."""

from __future__ import annotations

import sys
from typing import Any

from rlhf.config import trainer_fields
from rlhf.workflow import stage_of

DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "disable_tqdm": not sys.stderr.isatty(),
    "logging_steps": 5,
    "logging_nan_inf_filter": False,  # it hides a diverged run from the logs and from `train_loss`
    "logging_first_step": True,
    "save_strategy": "steps",
    "save_steps": 0.2,
    "save_total_limit": 2,
    "eval_strategy": "no",
    "report_to": "none",
    "gradient_checkpointing": False,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
}
"""Of every stage, unless its `Stage.defaults` differ; `bf16` follows the hardware."""


def settings_of(stage: str, trainer: dict[str, Any]) -> dict[str, Any]:
    """The fields of a stage's trainer with their values, those that its YAML leaves open included.

    Args:
        stage: The kind of stage.
        trainer: Fields that the YAML gives.
    """
    return {**trainer_fields.class_defaults(stage), **DEFAULTS, **stage_of(stage).defaults, **trainer}


_OF_THE_MACHINE = ("bf16", "dataloader_pin_memory")


def rows_of_step(stage: str, trainer: dict[str, Any], processes: int) -> int | None:
    """Rows of an optimizer step over all processes; None for a stage that takes no such steps.

    Args:
        stage: The kind of stage.
        trainer: Fields of its trainer's config.
        processes: How many train it.
    """
    fields = settings_of(stage, trainer)
    if "gradient_accumulation_steps" not in fields:
        return None
    return fields["per_device_train_batch_size"] * fields["gradient_accumulation_steps"] * processes


def non_default_fields(stage: str, trainer: dict[str, Any]) -> dict[str, Any]:
    """The fields of a stage's YAML that say something else than silence would.

    Args:
        stage: The kind of stage.
        trainer: Fields of its trainer's config.
    """
    silent = settings_of(stage, {})
    return {
        name: value
        for name, value in trainer.items()
        if name in _OF_THE_MACHINE or name not in silent or silent[name] != value
    }
