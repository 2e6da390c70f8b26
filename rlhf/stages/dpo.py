"""The dpo stage: TRL's DPOTrainer on pairs that are tokenised already, with the parent stage as exact reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf.stages._checkpoints import checkpoint_judge
from rlhf.workflow import TRL_CONFIG, Metrics, Stage, StageContext

if TYPE_CHECKING:
    from rlhf.training.ready import Ready


def prepare(context: StageContext) -> Ready:
    """Read and tokenise `data.preferences` as a prompt and two completions."""
    from rlhf.data.tokenize import Codec
    from rlhf.models.load import check_policy
    from rlhf.training.ready import Ready, arguments, prepared_data
    from rlhf.training.starting_point import starting_point
    from rlhf.trl_trainers.reference import worth_storing

    start = starting_point(context)
    check_policy(start.source, start.encoder)
    args: Any = arguments(context, start)
    if (judge := checkpoint_judge(context)) is not None:
        judge.check(args)
    codec = Codec(start.tokenizer, args.max_length, args.truncation_mode)
    settings = {"max_length": args.max_length, "keep": codec.keep}
    data = prepared_data(context, start, codec.pair, settings, ahead=codec.ahead)
    if "precompute_ref_log_probs" not in context.settings.trainer:
        args.precompute_ref_log_probs = worth_storing(args, len(data.train), second=start.config.adapter is None)
    return Ready(start, args, data)


def trial(context: StageContext, ready: Ready) -> None:
    """Make the trainer once for nothing, its reference not computed ahead."""
    from peft import TaskType

    from rlhf.training.trial import try_trainer, weightless
    from rlhf.trl_trainers.dpo import DPOTrainer
    from rlhf.trl_trainers.speedups import NO_SPEEDUPS

    ready.args.precompute_ref_log_probs = False
    reference = weightless(ready, TaskType.CAUSAL_LM) if ready.start.config.adapter is None else None
    try_trainer(
        ready,
        TaskType.CAUSAL_LM,
        lambda few, model: few.trainer(DPOTrainer, model, ref_model=reference, speedups=NO_SPEEDUPS),
    )


def run(context: StageContext) -> Metrics:
    """Train from the parent's model, which is also the reference."""
    from peft import PeftModel, TaskType

    from rlhf.training.candidates import choose, drop, keep_candidates
    from rlhf.training.run import held_out_metrics, run_training
    from rlhf.training.save import save_model
    from rlhf.training.starting_point import adapted, starting_policy
    from rlhf.trl_trainers.dpo import DPOTrainer, falling_chosen
    from rlhf.trl_trainers.speedups import speedups_of

    ready = prepare(context)
    start = ready.start
    model = adapted(starting_policy(context, start), start, TaskType.CAUSAL_LM, ready.args)
    # with an adapter the reference is the model without it; with all weights trained, the policy before its first step
    # while that can be stored, else a second copy
    alone = isinstance(model, PeftModel) or ready.args.precompute_ref_log_probs
    reference = None if alone else starting_policy(context, start)
    trainer = ready.trainer(DPOTrainer, model, ref_model=reference, speedups=speedups_of(context))
    judge = checkpoint_judge(context)
    candidates = keep_candidates(judge, model, context.directory, trainer)
    metrics = run_training(trainer, context)
    metrics.update(choose(judge, candidates, start.opened))
    if metrics.get("selected_step", metrics["steps"]) != metrics["steps"]:
        metrics.update(held_out_metrics(trainer))  # of the checkpoint that is kept
    names = {"rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    metrics = {names.get(key, key): value for key, value in metrics.items()}
    metrics["warning"] = falling_chosen(trainer.state.log_history)
    saved = save_model(trainer, ready, context)
    drop(candidates)
    return {**metrics, **saved}


STAGE = Stage(
    name="dpo",
    order=40,
    label="DPO",
    leaves="policy",
    run=run,
    prepare=prepare,
    trial=trial,
    method="Direct preference optimisation",
    data="preferences",
    follows=("sft",),
    trainer=(*TRL_CONFIG, "trl.trainer.dpo_config:DPOConfig"),
    intervals={
        "beta": "(0, inf)", "discopop_tau": "(0, inf)", "f_alpha_divergence_coef": "(-inf, inf)",
        "label_smoothing": "[0, 0.5]", "ld_alpha": "[0, 1]", "loss_weights": "(-inf, inf)",
        "precompute_ref_batch_size": "[1, 1e6]", "ref_model_mixup_alpha": "[0, 1]", "ref_model_sync_steps": "[1, 1e9]",
    },
    choices={
        "loss_type": (
            "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
            "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
        ),
        "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    },
    checkpoint_judge=True,
)  # fmt: skip
