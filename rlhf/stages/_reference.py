"""What the stages share that train a policy on TRL and hold it to a reference: its parent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf.config.project import ProjectConfig
from rlhf.stages._checkpoints import checkpoint_judge
from rlhf.workflow import Metrics, StageContext, base_of
from rlhf.workload import POLICY, REFERENCE, Circumstances, Held, Pass, Workload

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
    from rlhf.models.device import launch_shards

    if "precompute_ref_log_probs" not in context.settings.trainer:
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        epochs = args.max_steps * step / rows if args.max_steps > 0 else args.num_train_epochs
        moves = args.sync_ref_model or launch_shards()
        args.precompute_ref_log_probs = worth_storing(epochs, moves, second=start.config.adapter is None)


def worth_storing(epochs: float, moves: bool, second: bool) -> bool:
    """Whether reference log-probabilities are computed once and stored.

    They are where each would be needed again, or where the reference is a second model, which then is never loaded:
    before training the policy is the reference.

    Args:
        epochs: How often each row is trained on.
        moves: Whether the reference moves; or weights are sharded over processes, which they are when training begins:
            before that the main process alone has them.
        second: Whether all weights are trained.
    """
    return not moves and (epochs > 1 or (second and epochs == 1))


def held_to_reference(
    project: ProjectConfig, name: str, given: Circumstances, sequences: tuple[tuple[str, ...], ...]
) -> Workload:
    """A policy that is trained, and a reference: the policy without its adapter, stored values, or a second model.

    Args:
        project: The project.
        name: The stage.
        given: What else decides it.
        sequences: As in `Pass`.
    """
    base, get = base_of(project, name), given.settings.get
    policy, second = Held(POLICY, base, base.adapter, trained=True), base.adapter is None
    training = given.training(roles=(POLICY,), sequences=sequences, head="tiled")
    stored = get("precompute_ref_log_probs")
    if "precompute_ref_log_probs" not in project.stage(name).trainer:
        stored = worth_storing(training.epochs, bool(get("sync_ref_model")) or given.sharded, second)
    reference = REFERENCE if second and not stored else POLICY
    batch = get("precompute_ref_batch_size") if stored else None
    measuring = Pass(
        "reference", (reference,), sequences, batch or training.at_once, "tiled",
        epochs=1.0 if stored else training.epochs, rows=None if stored else training.rows,
    )  # fmt: skip
    models = (policy, Held(REFERENCE, base)) if reference is REFERENCE else (policy,)
    return Workload(models, (training, measuring, given.evaluation(training)))


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
