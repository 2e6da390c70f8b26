"""The reward stage: a sequence classifier with one label, trained on preference pairs (TRL's RewardTrainer)."""

from __future__ import annotations

import functools
from typing import Any

import trl
from peft import TaskType
from transformers import set_seed
from trl import RewardConfig

from rlhf.data.tokenize import Codec
from rlhf.evaluation.reward_model import held_out_accuracy
from rlhf.models.load import load_scorer
from rlhf.stages import Metrics, StageContext
from rlhf.training.common import Ready, arguments, prepared_data, run_training, save_model
from rlhf.training.start import adapted, start
from rlhf.training.trial import try_trainer
from rlhf.trl_trainers.speedups import PLAIN, LeanTrainer, Levers, levers


class RewardTrainer(LeanTrainer, trl.RewardTrainer):
    """TRL's trainer, which computes what the two sides of a pair share once."""

    group_size = 2
    fused_head = False


def prepare(context: StageContext) -> Ready:
    """Read and tokenise `data.preferences` as whole sequences."""
    begun = start(context)
    args: Any = arguments(context, RewardConfig, begun)
    codec = Codec(begun.tokenizer, args.max_length, encoder=begun.encoder)
    ahead = functools.partial(codec.ahead, prompts=False)
    settings = {"max_length": args.max_length}
    return Ready(begun, args, prepared_data(context, begun, codec.scored_pair, settings, ahead=ahead))


def trial(context: StageContext, ready: Ready) -> None:
    """Make the trainer once for nothing."""
    try_trainer(ready, TaskType.SEQ_CLS, functools.partial(_trainer, levers=PLAIN))


def train(context: StageContext) -> Metrics:
    """Train a reward model, and measure it beside a ruler on the held-out pairs."""
    ready = prepare(context)
    begun = ready.begun
    set_seed(ready.args.seed)  # the new head is drawn here
    scorer = load_scorer(begun.source, begun.config, begun.tokenizer, new_head=True)
    trainer = _trainer(ready, adapted(scorer.model, begun, TaskType.SEQ_CLS, ready.args, scorer.fresh), levers(context))
    metrics = run_training(trainer, context)
    if ready.eval_rows is not None:
        metrics.update(held_out_accuracy(trainer, ready.data.train, ready.eval_rows))
    return {**metrics, **save_model(trainer, ready, context)}


def _trainer(ready: Ready, model: Any, levers: Levers) -> RewardTrainer:
    return RewardTrainer(
        model,
        args=ready.args,
        train_dataset=ready.data.train,
        eval_dataset=ready.eval_rows,
        processing_class=ready.begun.tokenizer,
        levers=levers,
    )
