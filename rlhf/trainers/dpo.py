"""The dpo stage: TRL's DPOTrainer on pairs that are tokenised already, with the parent stage as exact reference."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from datasets.fingerprint import Hasher
from peft import PeftModel, TaskType
from trl import DPOConfig

from rlhf.data.tokenize import Codec
from rlhf.errors import UserError, unknown_name
from rlhf.models.device import sharded
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
from rlhf.trainers.lean import LeanTrainer, levers

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
"""What TRL computes; it refuses others only once it trains."""

_PREPARE = ["self", "dataset", "processing_class", "args", "dataset_name"]


COUPLED = {"aot", "aot_unpaired", "sft"}
"""Losses of a batch as a whole: those of optimal transport sort its pairs, that of `sft` is a mean over its tokens."""


class DPOTrainer(LeanTrainer, trl.DPOTrainer):
    """TRL's trainer, which also takes rows with `prompt_ids`, `chosen_ids`, `rejected_ids` as they are.

    TRL's SFT and reward trainers do so by themselves; its DPO trainer tokenises whatever it is given.
    """

    group_size = 2

    def separable(self) -> bool:
        """Whether every loss is a mean over pairs."""
        return not COUPLED & set(self.loss_types)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's, stored beside the dataset; its key lacks what else decides the numbers."""
        self.ease()
        if self._reference_key is None:
            versions = (trl.__version__, transformers.__version__, torch.__version__)
            precision = (self.args.bf16, self.args.fp16, str(self.model.dtype))
            self._reference_key = Hasher.hash((self._precompute_model_hash, self.ld_alpha, precision, versions))
            self._precompute_model_hash = self._reference_key
        return super()._precompute_ref_logps(dataset, name, batch_size)

    _reference_key: str | None = None

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
    data = prepared_data(context, begun, codec.pair, {"max_length": args.max_length, "keep": codec.keep})
    if "precompute_ref_log_probs" not in context.project.stages[context.name].trainer:
        args.precompute_ref_log_probs = _worth_storing(args, len(data.train), second=begun.config.adapter is None)
    return Ready(begun, args, data)


def _worth_storing(args: Any, rows: int, second: bool) -> bool:
    """Whether reference log-probs are computed once and stored.

    They are where each would be needed again, or where the reference is a second model, which then is never loaded:
    before training the policy is the reference. Not for a reference that moves, and not under FSDP, where TRL loads
    that second model in any case.

    Args:
        args: The trainer's.
        rows: Rows of training.
        second: Whether all weights are trained.
    """
    if args.sync_ref_model or sharded():
        return False
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    epochs = args.max_steps * step / rows if args.max_steps > 0 else args.num_train_epochs
    return bool(epochs > 1 or (second and epochs == 1))


def train(context: StageContext) -> Metrics:
    """Train from the parent's model, which is also the reference."""
    check_trl()
    ready = prepare(context)
    begun = ready.begun
    model = adapted(starting_policy(context, begun), begun, TaskType.CAUSAL_LM, ready.args)
    # with an adapter the reference is the model without it; with all weights trained, the policy before its first step
    # while that can be stored, else a second copy
    alone = isinstance(model, PeftModel) or ready.args.precompute_ref_log_probs
    reference = None if alone else load_policy(begun.source, begun.config, begun.tokenizer)
    trainer = DPOTrainer(
        model,
        ref_model=reference,
        args=ready.args,
        train_dataset=ready.data.train,
        eval_dataset=ready.eval_rows,
        processing_class=begun.tokenizer,
        levers=levers(context),
    )
    metrics = run_training(trainer, context)
    names = {"rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    metrics = {names.get(key, key): value for key, value in metrics.items()}
    return {**metrics, **save_model(trainer, ready, context)}
