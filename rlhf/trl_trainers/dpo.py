"""The dpo stage: TRL's DPOTrainer on pairs that are tokenised already, with the parent stage as exact reference."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from datasets.fingerprint import Hasher
from peft import PeftModel, TaskType
from trl import DPOConfig

from rlhf.data.tokenize import Codec
from rlhf.models.device import sharded
from rlhf.models.load import check_policy
from rlhf.stages import Metrics, StageContext
from rlhf.training.common import (
    Ready,
    arguments,
    held_out_metrics,
    prepared_data,
    run_training,
    save_model,
)
from rlhf.training.start import adapted, start, starting_policy
from rlhf.training.track import candidates, check_tracking, choose, drop
from rlhf.training.trial import try_trainer, weightless
from rlhf.trl_trainers.speedups import PLAIN, LeanTrainer, Levers, levers

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


def prepare(context: StageContext) -> Ready:
    """Read and tokenise `data.preferences` as a prompt and two completions."""
    begun = start(context)
    check_policy(begun.source, begun.encoder)
    args: Any = arguments(context, DPOConfig, begun)
    check_tracking(context, args)
    codec = Codec(begun.tokenizer, args.max_length, args.truncation_mode)
    settings = {"max_length": args.max_length, "keep": codec.keep}
    data = prepared_data(context, begun, codec.pair, settings, ahead=codec.ahead)
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


def trial(context: StageContext, ready: Ready) -> None:
    """Make the trainer once for nothing, its reference not computed ahead."""
    ready.args.precompute_ref_log_probs = False
    reference = weightless(ready, TaskType.CAUSAL_LM) if ready.begun.config.adapter is None else None
    try_trainer(ready, TaskType.CAUSAL_LM, functools.partial(_trainer, levers=PLAIN, reference=reference))


def _trainer(ready: Ready, model: Any, levers: Levers, reference: Any) -> DPOTrainer:
    return DPOTrainer(
        model,
        ref_model=reference,
        args=ready.args,
        train_dataset=ready.data.train,
        eval_dataset=ready.eval_rows,
        processing_class=ready.begun.tokenizer,
        levers=levers,
    )


def train(context: StageContext) -> Metrics:
    """Train from the parent's model, which is also the reference."""
    ready = prepare(context)
    begun = ready.begun
    model = adapted(starting_policy(context, begun), begun, TaskType.CAUSAL_LM, ready.args)
    # with an adapter the reference is the model without it; with all weights trained, the policy before its first step
    # while that can be stored, else a second copy
    alone = isinstance(model, PeftModel) or ready.args.precompute_ref_log_probs
    reference = None if alone else starting_policy(context, begun)
    trainer = _trainer(ready, model, levers(context), reference)
    kept = candidates(context, model, trainer)
    metrics = run_training(trainer, context)
    metrics.update(choose(kept, context, ready, model, trainer))
    if metrics.get("selected_step", metrics["steps"]) != metrics["steps"]:
        metrics.update(held_out_metrics(trainer))  # of the checkpoint that is kept
    names = {"rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    metrics = {names.get(key, key): value for key, value in metrics.items()}
    metrics["warning"] = falling_chosen(trainer.state.log_history)
    saved = save_model(trainer, ready, context)
    drop(kept)
    return {**metrics, **saved}


def falling_chosen(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Whether training made the chosen replies less likely while the margin grew, which a falling loss does not show.

    Compared are the means of the first and the last third of the logged implicit rewards β (log π − log π_ref). A fall
    is one of more than two standard errors of the difference of the means.

    Args:
        history: Logged rows; those of training have `rewards/chosen` and `rewards/margins`, in units of β · nats/reply.

    Returns:
        A sentence with the numbers, or None; None too with fewer than six rows.

    Source: Pal et al., "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive" (2024), for the
    failure; Pang et al., "Iterative Reasoning Preference Optimization" (2024), for the remedy. The test is ours.
    """
    rows = [row for row in history if "rewards/chosen" in row and "rewards/margins" in row]
    if len(rows) < 6:
        return None
    third = len(rows) // 3
    first, last = ([row["rewards/chosen"] for row in part] for part in (rows[:third], rows[-third:]))
    before, after = fmean(first), fmean(last)
    error = ((variance(first) + variance(last)) / third) ** 0.5
    margins = [fmean(row["rewards/margins"] for row in part) for part in (rows[:third], rows[-third:])]
    if before - after <= 2 * error or margins[1] <= margins[0]:
        return None
    return (
        f"the chosen replies became less likely: their implicit reward fell from {before:.3f} to {after:.3f} while the "
        f"margin grew from {margins[0]:.3f} to {margins[1]:.3f}, since the loss sees only the difference of the two "
        "sides; if replies get worse, lower learning_rate, raise beta, or add the likelihood of the chosen reply with "
        "loss_type: [sigmoid, sft]"
    )
