"""The ppo stage: online training from the parent stage's policy, with PPO, RLOO, GRPO or REINFORCE."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf import processes
from rlhf.config.project import ProjectConfig
from rlhf.errors import UserError
from rlhf.stages._checkpoints import checkpoint_judge
from rlhf.stages._rewards import check, check_rewards, reward_models, rewards
from rlhf.stages._sampling import settle_sampler
from rlhf.workflow import TRAINING_ARGUMENTS, Metrics, Stage, StageContext, base_of
from rlhf.workload import CRITIC, POLICY, REFERENCE, REWARD, Circumstances, Held, Pass, Workload

if TYPE_CHECKING:
    from rlhf.training.ready import Ready


def prepare(context: StageContext) -> Ready:
    """Read and tokenise the prompts, and check that there is something to maximise."""
    from rlhf.policies.kinds import policy_kind
    from rlhf.ppo.config import unsupported_settings
    from rlhf.training.ready import Ready, arguments, prepared_data
    from rlhf.training.starting_point import starting_point

    start = starting_point(context)
    kind = policy_kind(start.opened)
    args: Any = arguments(context, start)
    if problems := [*args.check(), *unsupported_settings(args, start.config.adapter)]:
        raise UserError(f"stages.{context.name}.{problems[0]}")
    check_rewards(context.project, context.name)
    if (judge := checkpoint_judge(context)) is not None:
        judge.check(args)
    try:
        encoder = kind.prompts(args)
    except UserError as error:
        raise UserError(f"stages.{context.name}.{error}") from None
    settle_sampler(context, args, start.config.adapter, kind.config)
    data = prepared_data(context, start, encoder, keep_columns=True)
    kind.check_columns(map(json.loads, data.train["extra"]), context.project, f"data.{context.stage.data}")
    return Ready(start, args, data)


def dry_run(context: StageContext, ready: Ready) -> None:
    """Build a trainer once as a dry run: transformers' own, since `check` knows all that ours adds."""
    from transformers import Trainer

    from rlhf.training.dry_run import try_trainer

    try_trainer(ready, lambda few, model: few.trainer(Trainer, model))


def run(context: StageContext) -> Metrics:
    """Train the parent's policy on its own completions."""
    from rlhf.artifacts.open import open_stage
    from rlhf.models.device import claim_sharding
    from rlhf.models.fsdp import shard
    from rlhf.models.roles import POLICY
    from rlhf.policies.kinds import policy_kind
    from rlhf.ppo.config import take_every_action
    from rlhf.ppo.diagnostics import last_rollout
    from rlhf.ppo.trainer import PPOTrainer
    from rlhf.rewards.load import OWN_REWARD
    from rlhf.training.candidates import choose, keep_candidates
    from rlhf.training.reached import search_if_needed
    from rlhf.training.roles import build_roles, load_maximised
    from rlhf.training.run import run_training
    from rlhf.training.save import save_model

    shards = claim_sharding()
    ready = prepare(context)
    start, args = ready.start, ready.args
    roles = build_roles(context, start, args, args.critic_start, shards)
    if not args.estimator.needs_values or (roles.critic_on_policy and not args.critic_warmup_rollouts):
        search_if_needed(args, roles.policy)  # all that learns does in one pass
    if shards:
        shard(roles, processes.state().device)
    kind = policy_kind(start.opened)
    policy: Any = kind.policy(roles, args, context.settings.fold)
    policy.folder = context.directory
    if roles.reward_head is not None:
        folder = context.parents[OWN_REWARD]
        policy.check_scores(folder, open_stage(folder).manifest.get("probe"))
    if context.settings.fold and policy.notice is not None and processes.is_main():
        print(f"{context.name}: {policy.notice}", file=sys.stderr)
    if (problem := take_every_action(args, policy.action_count)) is not None:
        raise UserError(f"stages.{context.name}.{problem}")
    samples_file = context.directory / "rollouts.jsonl"
    trainer = PPOTrainer(
        policy, args, kind.inputs(ready.data.train), load_maximised(context, roles), samples_file, context.name
    )
    judge = checkpoint_judge(context)
    candidates = keep_candidates(judge, roles.policy, context.directory, trainer)
    with contextlib.closing(policy):
        metrics = run_training(trainer, context, [samples_file])
    if roles.shared:
        roles.policy.set_adapter(POLICY)
    metrics.update(choose(judge, candidates, start.opened))
    saved = save_model(trainer, ready, context, roles.policy)
    return {**metrics, **last_rollout(trainer.state.log_history, trainer.history), **saved}


_UNFIT = {
    "ACCELERATE_USE_DEEPSPEED": "asks for DeepSpeed, which trains one model and not several roles; take "
    "recipes/accelerate/fsdp2.yaml",
    "FSDP_OFFLOAD_PARAMS": "has fsdp_offload_params, which this stage does not do; set it to false",
    "FSDP_ACTIVATION_CHECKPOINTING": "has fsdp_activation_checkpointing; set it to false, and gradient_checkpointing: "
    "true in the stage",
}
"""What a launch must not ask for, by the variable in which accelerate passes it on."""


def launch_problem(project: ProjectConfig, name: str, processes: int, asked: Mapping[str, str]) -> str | None:
    """Why it cannot run as it is launched; None where it can. The trainer has a check of its own for plain scripts."""
    problems = (problem for variable, problem in _UNFIT.items() if asked.get(variable, "false").lower() == "true")
    return next((f"stages.{name}: the accelerate config {problem}" for problem in problems), None)


def workload(project: ProjectConfig, name: str, given: Circumstances) -> Workload:
    """Policy, reference, critic and reward models: with an adapter on one base, else each a model of its own."""
    from rlhf.objectives.advantages import ESTIMATORS

    base, get = base_of(project, name), given.settings.__getitem__
    lora, samples, prompts = base.adapter is not None, get("samples_per_prompt"), (("prompt_ids",),)
    separate = ESTIMATORS[get("advantage")].needs_values and get("critic") == "separate"
    models = [Held(POLICY, base, base.adapter, trained=True)]
    if separate:
        models.append(Held(CRITIC, None if lora else base, base.adapter, trained=True, scores=True))
    if not lora:
        models.append(Held(REFERENCE, base))
    models += reward_models(project, name, rewards(project, name), base)
    batch, step = get("per_device_train_batch_size"), get("gradient_accumulation_steps") * given.devices
    size = batch * step * get("num_mini_batches")
    total = get("total_episodes")
    epochs, rows = get("num_train_epochs") * samples, None if total is None else float(total)
    if (steps := get("max_steps")) > 0:
        rows = max(1.0, steps / (get("num_ppo_epochs") * get("num_mini_batches"))) * size
    one = Pass("", (), prompts, 1, "whole", writes=get("max_new_tokens"), samples=samples, epochs=epochs, rows=rows)
    roles = (POLICY, CRITIC) if separate else (POLICY,)
    again = get("num_ppo_epochs")
    scorers = tuple(model.role for model in models if model.role.startswith(REWARD))
    return Workload(
        tuple(models),
        (
            replace(one, name="training", roles=roles, at_once=batch, backward=True, epochs=epochs * again,
                    rows=None if rows is None else rows * again),
            replace(one, name="sampling", roles=(POLICY,), at_once=get("sampling_batch_size"), sampling=True),
            replace(one, name="measuring", roles=(POLICY if lora else REFERENCE, *roles[1:]),
                    at_once=get("per_device_eval_batch_size")),
            replace(one, name="scoring", roles=scorers, at_once=get("per_device_eval_batch_size"), head="score"),
        ),
    )  # fmt: skip


STAGE = Stage(
    name="ppo",
    order=60,
    label="PPO",
    leaves="policy",
    run=run,
    prepare=prepare,
    dry_run=dry_run,
    workload=workload,
    method="Reinforcement learning (PPO)",
    shows={
        "objective/scores": "normalised score", "objective/kl": "KL", "response/length": "tokens a reply",
        "policy/entropy": "entropy",
    },
    data="rollouts",
    follows=("rft", "sft"),
    uses=("reward",),
    launch_problem=launch_problem,
    rewards=rewards,
    trainer=(
        *TRAINING_ARGUMENTS,
        "rlhf.policies.settings:SamplingSettings",
        "rlhf.ppo.config:TruncationSettings",
        "rlhf.ppo.config:RewardSettings",
        "rlhf.ppo.config:KLSettings",
        "rlhf.ppo.config:CriticSettings",
        "rlhf.ppo.config:PPOConfig",
    ),
    defaults={
        "adam_epsilon": 1e-5,  # PyTorch's 1e-8 gave six times the approximate KL in Huang et al. (2023)
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "logging_steps": 1,
        "logging_first_step": False,
    },
    intervals={
        "cliprange": "(0, inf]", "cliprange_value": "(0, inf]", "critic_learning_rate": "(0, inf)",
        "critic_warmup_rollouts": "[0, 1e9]", "entropy_coef": "(-inf, inf)", "gamma": "[0, 1]", "kl_coef": "[0, inf)",
        "kl_horizon": "(0, inf]", "kl_target": "(0, inf)", "lam": "[0, 1]", "log_completions": "[0, 1e9]",
        "max_importance_weight": "(0, inf]", "max_new_tokens": "[1, 1e9]", "max_ratio": "(0, inf]",
        "missing_eos_penalty": "[0, inf)", "normalize_samples": "[0, 1e6]", "num_mini_batches": "[1, 1e6]",
        "num_ppo_epochs": "[1, 1e6]", "rewards": "(-inf, inf)", "samples_per_prompt": "[1, 1e6]",
        "sampling_batch_size": "[1, 1e6]", "target_kl": "(0, inf]", "temperature": "(0, inf)",
        "total_episodes": "[1, 1e9]", "vf_coef": "[0, inf)", "vllm_memory": "(0, 1]",
    },
    choices={
        "critic": ("separate", "shared"),
        "critic_from": ("reward", "policy"),
        "kl_estimator": ("k1", "k2", "k3"),
        "sampler": ("transformers", "vllm"),
        "truncated": ("bootstrap", "score"),
    },
    checkpoint_judge=True,
    check=check,
)  # fmt: skip
