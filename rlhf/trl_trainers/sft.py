"""The sft stage: imitate demonstrations (TRL's SFTTrainer), or fine-tune an encoder to classify labelled text."""

from __future__ import annotations

import functools
from typing import Any

import trl
from peft import TaskType
from transformers import DataCollatorWithPadding, EvalPrediction, Trainer, set_seed
from trl import SFTConfig

from rlhf.data.checks import check_classes
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models.load import load_scorer
from rlhf.prefix_sharing.support import packing_trial
from rlhf.stages import Metrics, StageContext
from rlhf.training.common import (
    Ready,
    arguments,
    prepared_data,
    run_training,
    save_model,
)
from rlhf.training.start import adapted, start, starting_policy
from rlhf.training.trial import try_trainer
from rlhf.trl_trainers.speedups import PLAIN, LeanTrainer, Levers, levers


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
        learned = {*data.train.unique("labels")}
        check_classes(learned)
        check_classes(learned | {*data.eval.unique("labels")})  # the head has outputs for those held out, too
    return Ready(begun, args, data)


def trial(context: StageContext, ready: Ready) -> None:
    """Make the trainer once for nothing."""
    if ready.begun.encoder:
        try_trainer(ready, TaskType.SEQ_CLS, _classifier, labels=_labels(ready))
    else:
        try_trainer(ready, TaskType.CAUSAL_LM, functools.partial(_imitator, levers=PLAIN))


def train(context: StageContext) -> Metrics:
    """Train a causal model to imitate, or an encoder to classify."""
    ready = prepare(context)
    begun = ready.begun
    if begun.encoder:
        set_seed(ready.args.seed)  # the new head is drawn here
        scorer = load_scorer(begun.source, begun.config, begun.tokenizer, labels=_labels(ready), new_head=True)
        trainer = _classifier(ready, adapted(scorer.model, begun, TaskType.SEQ_CLS, ready.args, scorer.fresh))
    else:
        policy = starting_policy(context, begun)
        if (ready.args.packing or ready.args.padding_free) and (reason := packing_trial(policy.base_model)):
            raise UserError(f"stages.sft.packing: the demonstrations of a row would see one another: {reason}")
        trainer = _imitator(ready, adapted(policy, begun, TaskType.CAUSAL_LM, ready.args), levers(context))
    metrics = run_training(trainer, context)
    return {**metrics, **save_model(trainer, ready, context)}


def _imitator(ready: Ready, model: Any, levers: Levers) -> Trainer:
    return SFTTrainer(
        model,
        args=ready.args,
        train_dataset=ready.data.train,
        eval_dataset=ready.eval_rows,
        processing_class=ready.begun.tokenizer,
        levers=levers,
    )


def _classifier(ready: Ready, model: Any) -> Trainer:
    """Plain cross-entropy on class labels with transformers' own Trainer: TRL has no classifier."""
    return Trainer(
        model,
        args=ready.args,
        train_dataset=ready.data.train,
        eval_dataset=ready.eval_rows,
        processing_class=ready.begun.tokenizer,
        data_collator=DataCollatorWithPadding(ready.begun.tokenizer),
        compute_metrics=_accuracy,
    )


def _labels(ready: Ready) -> int:
    """Classes of the data, at least two."""
    return max(2, 1 + max(max(ready.data.train["labels"]), max(ready.data.eval["labels"], default=0)))


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}
