"""The dpo stage: TRL's DPOTrainer on pairs that are tokenised already, with the parent stage as exact reference."""

from __future__ import annotations

import inspect
from typing import Any

import trl
from peft import PeftModel, TaskType
from trl import DPOConfig

from rlhf.config import unknown_name
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models.load import check_policy, load_policy
from rlhf.stages import Metrics, StageContext
from rlhf.trainers.common import (
    Ready,
    adapted,
    arguments,
    prepared_data,
    run_training,
    save_model,
    start,
    starting_policy,
)

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
"""What TRL computes; it refuses others only once it trains."""

_PREPARE = ["self", "dataset", "processing_class", "args", "dataset_name"]


class DPOTrainer(trl.DPOTrainer):
    """TRL's trainer, which also takes rows with `prompt_ids`, `chosen_ids`, `rejected_ids` as they are.

    TRL's SFT and reward trainers do so by themselves; its DPO trainer tokenises whatever it is given.
    """

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if "prompt_ids" in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)


def check_trl() -> None:
    """Hold that the one method overridden here is still the one we know.

    Raises:
        UserError: TRL has moved.
    """
    found = list(inspect.signature(trl.DPOTrainer._prepare_dataset).parameters)
    if found != _PREPARE:
        raise UserError(
            f"trl {trl.__version__}: DPOTrainer._prepare_dataset takes {found}, not {_PREPARE}; use trl 1.16"
        )


def prepare(context: StageContext) -> Ready:
    """Read and tokenise `data.preferences` as a prompt and two completions."""
    begun = start(context)
    check_policy(begun.source, begun.encoder)
    args: Any = arguments(context, DPOConfig, begun)
    for loss in args.loss_type:
        if loss not in LOSSES:
            raise UserError(f"stages.dpo.loss_type: unknown loss {loss!r}; {unknown_name(loss, LOSSES)}")
    codec = Codec(begun.tokenizer, args.max_length, args.truncation_mode)
    return Ready(
        begun, args, prepared_data(context, begun, codec.pair, {"max_length": args.max_length, "keep": codec.keep})
    )


def train(context: StageContext) -> Metrics:
    """Train from the parent's model, which is also the reference."""
    check_trl()
    ready = prepare(context)
    begun = ready.begun
    model = adapted(starting_policy(context, begun), begun, TaskType.CAUSAL_LM, ready.args)
    # with an adapter the reference is the model without it; with all weights trained it is a second copy
    reference = None if isinstance(model, PeftModel) else load_policy(begun.source, begun.config, begun.tokenizer)
    trainer = DPOTrainer(
        model,
        ref_model=reference,
        args=ready.args,
        train_dataset=ready.data.train,
        eval_dataset=ready.eval_rows,
        processing_class=begun.tokenizer,
    )
    metrics = run_training(trainer, context)
    names = {"rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    metrics = {names.get(key, key): value for key, value in metrics.items()}
    return {**metrics, **save_model(trainer, ready, context)}
