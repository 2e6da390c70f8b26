"""The sft stage: imitate demonstrations (TRL's SFTTrainer), or fine-tune an encoder to classify labelled text."""

from __future__ import annotations

from typing import Any

import trl
from peft import TaskType
from transformers import DataCollatorWithPadding, EvalPrediction, Trainer, set_seed
from trl import SFTConfig

from rlhf.data.checks import check_classes
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models.foldable import packing_trial
from rlhf.models.load import load_scorer
from rlhf.stages import Metrics, StageContext
from rlhf.trainers.common import (
    Ready,
    arguments,
    prepared_data,
    run_training,
    save_model,
)
from rlhf.trainers.lean import LeanTrainer, levers
from rlhf.trainers.start import adapted, start, starting_policy


class SFTTrainer(LeanTrainer, trl.SFTTrainer):
    """TRL's trainer, whose head runs only where a label is, and which runs rows of like length together."""

    token_loss = True


def prepare(context: StageContext) -> Ready:
    """Read and tokenise `data.demonstrations`: replies for a causal model, `text` and `label` for an encoder."""
    begun = start(context)
    args: Any = arguments(context, SFTConfig, begun)
    codec = Codec(begun.tokenizer, args.max_length, args.truncation_mode, encoder=begun.encoder)
    encode = codec.labelled if begun.encoder else codec.demonstration
    settings = {"max_length": args.max_length, "keep": codec.keep}
    data = prepared_data(context, begun, encode, settings, ahead=codec.ahead)
    if begun.encoder:
        check_classes({*data.train.unique("labels")})
    return Ready(begun, args, data)


def train(context: StageContext) -> Metrics:
    """Train a causal model to imitate, or an encoder to classify."""
    ready = prepare(context)
    trainer = _classifier(ready) if ready.begun.encoder else _imitator(context, ready)
    metrics = run_training(trainer, context)
    return {**metrics, **save_model(trainer, ready, context)}


def _imitator(context: StageContext, ready: Ready) -> SFTTrainer:
    begun = ready.begun
    policy = starting_policy(context, begun)
    if (ready.args.packing or ready.args.padding_free) and (reason := packing_trial(policy.base_model)):
        raise UserError(f"stages.sft.packing: the demonstrations of a row would see one another: {reason}")
    return SFTTrainer(
        adapted(policy, begun, TaskType.CAUSAL_LM, ready.args),
        args=ready.args,
        train_dataset=ready.data.train,
        eval_dataset=ready.eval_rows,
        processing_class=begun.tokenizer,
        levers=levers(context),
    )


def _classifier(ready: Ready) -> Trainer:
    """Plain cross-entropy on class labels with transformers' own Trainer: TRL has no classifier."""
    begun, data = ready.begun, ready.data
    labels = max(max(data.train["labels"]), max(data.eval["labels"], default=0)) + 1
    set_seed(ready.args.seed)  # the new head is drawn here
    scorer = load_scorer(begun.source, begun.config, begun.tokenizer, labels=max(labels, 2), new_head=True)
    return Trainer(
        adapted(scorer.model, begun, TaskType.SEQ_CLS, ready.args, scorer.fresh),
        args=ready.args,
        train_dataset=data.train,
        eval_dataset=ready.eval_rows,
        processing_class=begun.tokenizer,
        data_collator=DataCollatorWithPadding(begun.tokenizer),
        compute_metrics=_accuracy,
    )


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}
