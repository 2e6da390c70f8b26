"""The reward stage: a sequence classifier with one label, trained on preference pairs (TRL's RewardTrainer)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from rlhf.config.project import ProjectConfig
from rlhf.workflow import TRL_CONFIG, Metrics, Stage, StageContext, base_of
from rlhf.workload import REWARD, Circumstances, Held, Workload

if TYPE_CHECKING:
    from rlhf.training.ready import Ready


def prepare(context: StageContext) -> Ready:
    """Read and tokenise `data.preferences` as whole sequences."""
    from rlhf.data.tokenize import Codec
    from rlhf.policies.kinds import Encoder
    from rlhf.training.ready import Ready, arguments, prepared_data
    from rlhf.training.starting_point import starting_point

    start = starting_point(context)
    args: Any = arguments(context, start)
    codec = Codec(start.tokenizer, args.max_length, encoder=start.encoder)
    ahead = functools.partial(codec.ahead, prompts=False)
    encoder = Encoder(codec.scored_pair, {"max_length": args.max_length}, ahead)
    return Ready(start, args, prepared_data(context, start, encoder))


def dry_run(context: StageContext, ready: Ready) -> None:
    """Build the trainer once as a dry run."""
    from rlhf.training.dry_run import try_trainer
    from rlhf.trl_trainers.reward import RewardTrainer
    from rlhf.trl_trainers.speedups import NO_SPEEDUPS

    try_trainer(ready, lambda few, model: few.trainer(RewardTrainer, model, speedups=NO_SPEEDUPS), labels=1)


def run(context: StageContext) -> Metrics:
    """Train a reward model, and measure it beside the length baseline on the held-out pairs."""
    from transformers import set_seed

    from rlhf.training.run import run_training
    from rlhf.training.save import save_model
    from rlhf.training.starting_point import adapted
    from rlhf.trl_trainers.reward import RewardTrainer
    from rlhf.trl_trainers.speedups import speedups_of

    ready = prepare(context)
    start = ready.start
    set_seed(ready.args.seed)  # the new head is drawn here
    scorer = start.opened.with_new_head()
    model = adapted(scorer.model, start, ready.args, scorer.fresh)
    trainer = ready.trainer(RewardTrainer, model, speedups=speedups_of(context))
    metrics = run_training(trainer, context)
    if ready.eval_rows is not None:
        metrics.update(_held_out(context, ready, trainer))
    return {**metrics, **save_model(trainer, ready, context)}


def _held_out(context: StageContext, ready: Ready, trainer: Any) -> Metrics:
    """Accuracy on the held-out pairs beside the length baseline, and the spread of the scores, as the gate has them."""
    import numpy as np

    from rlhf.data.tokenize import Codec
    from rlhf.evaluation.pairs import held_out_pairs
    from rlhf.evaluation.reward_model import pair_accuracy, score_pairs
    from rlhf.evaluation.shares import by_all
    from rlhf.models.shards import is_sharded
    from rlhf.rewards.model import score_texts

    model = trainer.accelerator.unwrap_model(trainer.model)
    codec = Codec(ready.start.tokenizer, encoder=ready.start.encoder)
    judge: Any = functools.partial(score_texts, model, codec, batch_size=trainer.args.per_device_eval_batch_size)
    if not is_sharded(model):  # else all processes run it together, each for all pairs
        judge.rowwise = True
        judge = by_all(judge)
    pairs = held_out_pairs(context.project)
    scores_M2 = score_pairs(judge, pairs.records)
    spread = {"score_mean": float(np.nanmean(scores_M2)), "score_std": float(np.nanstd(scores_M2))}
    return {**pair_accuracy(scores_M2, pairs), **spread}


def workload(project: ProjectConfig, name: str, given: Circumstances) -> Workload:
    """A scorer that is trained on both sides of each pair."""
    base, sides = base_of(project, name), (("chosen_ids",), ("rejected_ids",))
    training = given.training(roles=(REWARD,), sequences=sides, head="score")
    scorer = Held(REWARD, base, base.adapter, trained=True, scores=True)
    return Workload((scorer,), (training, given.evaluation(training)))


STAGE = Stage(
    name="reward",
    order=20,
    label="Reward model",
    leaves="scorer",
    run=run,
    prepare=prepare,
    dry_run=dry_run,
    workload=workload,
    method="A reward model, trained on preference pairs",
    shows={"loss": "loss", "accuracy": "accuracy", "eval_accuracy": "held-out accuracy", "margin": "margin"},
    data="preferences",
    follows=("sft",),
    trainer=(*TRL_CONFIG, "trl.trainer.reward_config:RewardConfig"),
    intervals={"center_rewards_coefficient": "[0, inf)"},
)
