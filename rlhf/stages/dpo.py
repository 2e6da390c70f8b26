"""The dpo stage: TRL's DPOTrainer on pairs that are tokenised already, with the parent stage as exact reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf.config.project import ProjectConfig
from rlhf.stages._reference import (
    held_to_reference,
    policy_arguments,
    settle_reference,
    train_with_reference,
    try_with_reference,
)
from rlhf.workflow import TRL_CONFIG, Metrics, Stage, StageContext
from rlhf.workload import PAIR, Circumstances, Workload

if TYPE_CHECKING:
    from rlhf.training.ready import Ready


def prepare(context: StageContext) -> Ready:
    """Read and tokenise `data.preferences` as a prompt and two completions."""
    from rlhf.data.tokenize import Codec
    from rlhf.policies.kinds import Encoder
    from rlhf.training.ready import Ready, prepared_data

    start, args = policy_arguments(context)
    codec = Codec(start.tokenizer, args.max_length, args.truncation_mode)
    encoder = Encoder(codec.pair, {"max_length": args.max_length, "keep": codec.keep}, codec.ahead)
    data = prepared_data(context, start, encoder)
    settle_reference(context, start, args, len(data.train))
    return Ready(start, args, data)


def dry_run(context: StageContext, ready: Ready) -> None:
    """Make the trainer once without training."""
    from rlhf.trl_trainers.dpo import DPOTrainer

    try_with_reference(ready, DPOTrainer)


def run(context: StageContext) -> Metrics:
    """Train from the parent's model, which is also the reference."""
    from rlhf.trl_trainers.dpo import DPOTrainer, falling_chosen

    metrics, log = train_with_reference(context, prepare(context), DPOTrainer)
    return {**metrics, "warning": falling_chosen(log)}


def workload(project: ProjectConfig, name: str, given: Circumstances) -> Workload:
    """A policy that is trained, and its reference."""
    return held_to_reference(project, name, given, PAIR)


STAGE = Stage(
    name="dpo",
    order=40,
    label="DPO",
    leaves="policy",
    run=run,
    prepare=prepare,
    dry_run=dry_run,
    workload=workload,
    method="Direct preference optimisation",
    shows={
        "loss": "loss", "rewards/accuracies": "accuracy", "eval_rewards/accuracies": "held-out accuracy",
        "rewards/margins": "margin",
    },
    data="preferences",
    rows_of=("rank",),
    follows=("rft", "sft"),
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
