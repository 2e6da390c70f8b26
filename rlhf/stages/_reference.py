"""What the stages share that train a policy on TRL and hold it to a reference: its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf.stages._checkpoints import checkpoint_judge
from rlhf.workflow import Metrics, StageContext

if TYPE_CHECKING:
    from rlhf.training.ready import Ready
    from rlhf.training.starting_point import StartingPoint


def policy_arguments(context: StageContext) -> tuple[StartingPoint, Any]:
    """The policy that a stage starts from and its trainer's arguments, with which its checkpoints can be judged.

    Raises:
        UserError: It is no policy, or its checkpoints cannot be judged as the settings ask for.
    """
    from rlhf.training.ready import arguments
    from rlhf.training.starting_point import check_writes, starting_point

    start = starting_point(context)
    check_writes(start, context.name)
    args = arguments(context, start)
    if (judge := checkpoint_judge(context)) is not None:
        judge.check(args)
    return start, args


def settle_reference(context: StageContext, start: StartingPoint, args: Any, rows: int) -> None:
    """Decide whether the reference's log-probabilities are stored, where the settings leave it open."""
    from rlhf.trl_trainers.reference import worth_storing

    if "precompute_ref_log_probs" not in context.settings.trainer:
        args.precompute_ref_log_probs = worth_storing(args, rows, second=start.config.adapter is None)


def try_with_reference(ready: Ready, kind: Any) -> None:
    """Make a trainer of this kind once without training, its reference not computed ahead."""
    from rlhf.training.dry_run import try_trainer, weightless
    from rlhf.trl_trainers.speedups import NO_SPEEDUPS

    ready.args.precompute_ref_log_probs = False
    reference = weightless(ready) if ready.start.config.adapter is None else None
    try_trainer(ready, lambda few, model: few.trainer(kind, model, ref_model=reference, speedups=NO_SPEEDUPS))


def train_with_reference(context: StageContext, ready: Ready, kind: Any) -> tuple[Metrics, list[dict[str, Any]]]:
    """Train from the parent's model, which is also the reference.

    Args:
        context: The stage.
        ready: Its starting point, arguments and data.
        kind: The class of its trainer.

    Returns:
        The stage's metrics, and the trainer's log.
    """
    from peft import PeftModel

    from rlhf.training.candidates import choose, keep_candidates
    from rlhf.training.run import held_out_metrics, run_training
    from rlhf.training.save import save_model
    from rlhf.training.starting_point import adapted, starting_policy
    from rlhf.trl_trainers.speedups import speedups_of

    start = ready.start
    stored = ready.args.precompute_ref_log_probs  # computed before the weights are sharded: each process needs them
    model = adapted(starting_policy(context, start, to_shard=not stored), start, ready.args)
    # with an adapter the reference is the model without it; with all weights trained, the policy before its first step
    # while that can be stored, else a second copy
    alone = isinstance(model, PeftModel) or stored
    reference = None if alone else starting_policy(context, start, to_shard=True)
    trainer = ready.trainer(kind, model, ref_model=reference, speedups=speedups_of(context))
    judge = checkpoint_judge(context)
    candidates = keep_candidates(judge, model, context.directory, trainer)
    metrics = run_training(trainer, context)
    metrics.update(choose(judge, candidates, start.opened))
    if metrics.get("selected_step", metrics["steps"]) != metrics["steps"]:
        metrics.update(held_out_metrics(trainer))  # of the checkpoint that is kept
    names = {"rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    metrics = {names.get(key, key): value for key, value in metrics.items()}
    saved = save_model(trainer, ready, context)
    return {**metrics, **saved}, trainer.state.log_history
