"""The sft stage: supervised training of a policy of any kind on demonstrations.

A language model imitates completions (TRL's SFTTrainer); other kinds learn labels, spans or target texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf import processes
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError, unknown_name
from rlhf.workflow import TRL_CONFIG, Metrics, Stage, StageContext, base_of
from rlhf.workload import POLICY, Circumstances, Held, Workload

if TYPE_CHECKING:
    from transformers import Trainer

    from rlhf.policies.kinds import PolicyKind
    from rlhf.training.ready import Ready


def prepare(context: StageContext) -> Ready:
    """Read and encode `data.demonstrations`, as the kind of policy reads them."""
    from rlhf.policies.kinds import policy_kind
    from rlhf.training.ready import Ready, arguments, prepared_data
    from rlhf.training.starting_point import starting_point

    start = starting_point(context)
    args: Any = arguments(context, start)
    kind = policy_kind(start.opened)
    for name in args.augment or ():
        if name not in kind.augmentations:
            fits = unknown_name(name, kind.augmentations) if kind.augmentations else "none does"
            raise UserError(f"stages.{context.name}.augment: {name!r} does not fit {start.source.base}; {fits}")
    ready = Ready(start, args, prepared_data(context, start, kind.demonstrations(args)))
    kind.classes(ready.data, args)  # raises where they cannot be learned
    return ready


def dry_run(context: StageContext, ready: Ready) -> None:
    """Build the trainer once as a dry run."""
    from rlhf.policies.kinds import policy_kind
    from rlhf.training.dry_run import try_trainer
    from rlhf.trl_trainers.speedups import NO_SPEEDUPS

    kind = policy_kind(ready.start.opened)
    classes = kind.classes(ready.data, ready.args)

    def make(few: Ready, model: Any) -> Trainer:
        if classes is not None:
            classes.name(model)
        return _trainer(kind, few, model, NO_SPEEDUPS)

    try_trainer(ready, make, None if classes is None else len(classes.names))


def run(context: StageContext) -> Metrics:
    """Train the policy."""
    from rlhf.models.tasks import CAUSAL_LM
    from rlhf.policies.kinds import policy_kind
    from rlhf.prefix_sharing.support import packing_check
    from rlhf.training.run import run_training
    from rlhf.training.save import save_model
    from rlhf.training.starting_point import adapted, starting_policy
    from rlhf.trl_trainers.speedups import speedups_of

    ready = prepare(context)
    start, args = ready.start, ready.args
    kind = policy_kind(start.opened)
    if start.task.new_head:
        model = _with_new_head(kind, ready)
    else:
        policy = starting_policy(context, start, to_shard=True)
        packs = start.task is CAUSAL_LM and (args.packing or args.padding_free)
        if packs and (reason := processes.broadcast(packing_check(policy.base_model))):
            raise UserError(f"stages.sft.packing: the demonstrations of a row would see one another: {reason}")
        model = adapted(policy, start, args)
    trainer: Any = _trainer(kind, ready, model, speedups_of(context))
    metrics = run_training(trainer, context)
    kind.finish(trainer.accelerator.unwrap_model(trainer.model), ready.data, args)
    return {**metrics, **save_model(trainer, ready, context)}


def _with_new_head(kind: PolicyKind, ready: Ready) -> Any:
    """The model under the head of its task, which is drawn from the seed where the files have none that fits."""
    from transformers import set_seed

    from rlhf.training.starting_point import adapted

    start, classes = ready.start, kind.classes(ready.data, ready.args)
    set_seed(ready.args.seed)
    loaded = start.opened.with_new_head(None if classes is None else len(classes.names), start.task)
    if classes is not None:
        classes.name(loaded.model)
    return adapted(loaded.model, start, ready.args, loaded.fresh)


def _trainer(kind: PolicyKind, ready: Ready, model: Any, speedups: Any) -> Trainer:
    """The trainer of a kind: transformers' own where the kind says how it learns, else TRL's."""
    from rlhf.models.adapters import without_peft
    from rlhf.trl_trainers.sft import AugmentingTrainer, SFTTrainer

    supervised = kind.supervised(without_peft(model), ready.data, ready.args)
    if supervised is None:
        return ready.trainer(SFTTrainer, model, speedups=speedups)
    ready.args.remove_unused_columns = False  # the collator reads columns that the model does not
    ready.args.label_names = ["labels"]  # as the collator names them; a model may have other names of its own
    return ready.trainer(
        AugmentingTrainer, model, data_collator=supervised.collator, compute_metrics=supervised.metrics,
        compute_loss_func=supervised.loss, training_collator=supervised.training_collator,
    )  # fmt: skip


def workload(project: ProjectConfig, name: str, given: Circumstances) -> Workload:
    """A policy that is trained."""
    base = base_of(project, name)
    training = given.training(roles=(POLICY,), sequences=(("input_ids",),), head="tiled")
    return Workload((Held(POLICY, base, base.adapter, trained=True),), (training, given.evaluation(training)))


STAGE = Stage(
    name="sft",
    order=10,
    label="SFT",
    leaves="policy",
    run=run,
    prepare=prepare,
    dry_run=dry_run,
    workload=workload,
    method="Supervised fine-tuning on demonstrations",
    shows={"loss": "loss", "eval_loss": "held-out loss", "mean_token_accuracy": "token accuracy"},
    data="demonstrations",
    first_round=True,
    trainer=(*TRL_CONFIG, "trl.trainer.sft_config:SFTConfig", "rlhf.trl_trainers.sft:SFTSettings"),
    choices={
        "loss_type": ("nll", "chunked_nll", "dft"),
        "packing_strategy": ("bfd", "bfd_split", "bfd-requeue", "wrapped"),
    },
)
