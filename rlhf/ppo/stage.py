"""The ppo stage: online training from the parent stage's policy, with PPO, RLOO, GRPO or REINFORCE."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Any

from datasets import Dataset
from peft import TaskType
from transformers import Trainer

from rlhf.config.project import ProjectConfig
from rlhf.data.records import Encoded, Prompt, Unusable
from rlhf.data.tokenize import Codec
from rlhf.errors import UserError
from rlhf.models.device import process_state
from rlhf.models.load import check_policy
from rlhf.models.roles import POLICY, Roles
from rlhf.ppo.collector import PromptRow, Rewards
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.diagnostics import hacking_signs
from rlhf.ppo.models import build_roles
from rlhf.ppo.trainer import PPOTrainer
from rlhf.rewards.load import OWN, load_rewards
from rlhf.stages import Metrics, StageContext, rewards_of
from rlhf.training.common import (
    Ready,
    arguments,
    prepared_data,
    run_training,
    save_model,
)
from rlhf.training.defaults import PPO_DEFAULTS
from rlhf.training.start import start
from rlhf.training.track import candidates, check_tracking, choose, drop
from rlhf.training.trial import try_trainer

_UNUSED = ("neftune_noise_alpha", "auto_find_batch_size", "load_best_model_at_end", "label_smoothing_factor")


def prepare(context: StageContext) -> Ready:
    """Read and tokenise the prompts, and hold that there is something to maximise."""
    begun = start(context)
    check_policy(begun.source, begun.encoder)
    args: Any = arguments(context, PPOConfig, begun, PPO_DEFAULTS)
    if problems := [*args.check(), *_unfit(args, begun.config.adapter)]:
        raise UserError(f"stages.ppo.{problems[0]}")
    _check_rewards(context.project, context.name)
    check_tracking(context, args)
    room = None if args.max_length is None else args.max_length - args.max_new_tokens
    if room is not None and room < 1:
        raise UserError(
            f"stages.ppo.max_new_tokens: {args.max_new_tokens} leave no room for a prompt within {args.max_length} "
            "tokens"
        )
    codec = Codec(begun.tokenizer, args.max_length)

    def encode(record: Prompt) -> Encoded:
        ids = codec.prompt(record.prompt)
        if not ids:
            raise Unusable("prompt without a token")
        if room is not None and len(ids) > room:
            raise Unusable("prompt leaves no room for a reply within max_length")
        return Encoded({"prompt_ids": ids, "prompt": json.dumps(record.prompt)})

    return Ready(begun, args, prepared_data(context, begun, encode, {"room": room}, keep_columns=True))


def trial(context: StageContext, ready: Ready) -> None:
    """Make a trainer once for nothing: transformers' own, since `check` knows all that ours adds."""

    def make(ready: Ready, model: Any) -> Trainer:
        return Trainer(model, args=ready.args, train_dataset=ready.data.train, processing_class=ready.begun.tokenizer)

    try_trainer(ready, TaskType.CAUSAL_LM, make)


def train(context: StageContext) -> Metrics:
    """Train the parent's policy on its own replies."""
    ready = prepare(context)
    begun, args = ready.begun, ready.args
    roles = build_roles(context, begun, args)
    if not context.project.stages[context.name].fold:
        roles.unfolded = "fold is off"
    elif roles.unfolded is not None and process_state().is_main_process:
        print(f"ppo: each reply has its prompt to itself: {roles.unfolded}", file=sys.stderr)
    samples_file = context.directory / "rollouts.jsonl"
    rows = prompt_rows(ready.data.train, Codec(begun.tokenizer))
    trainer = PPOTrainer(roles, args, rows, _rewards(context, roles), begun.tokenizer, samples_file)
    kept = candidates(context, roles.policy, trainer)
    metrics = run_training(trainer, context, [samples_file])
    if roles.shared:
        roles.policy.set_adapter(POLICY)
    metrics.update(choose(kept, context, ready, roles.policy, trainer))
    saved = save_model(trainer, ready, context, roles.policy)
    drop(kept)
    return {**metrics, **_last(trainer), **saved}


def prompt_rows(data: Dataset, codec: Codec) -> list[PromptRow]:
    """Prompts with their columns, as `prepare` encoded them, and what ends a reply to a text or in a conversation."""
    endings: dict[type, list[int]] = {}
    rows = []
    for row in data:
        prompt = json.loads(row["prompt"])
        if type(prompt) not in endings:
            endings[type(prompt)] = codec.ending(prompt)
        rows.append(PromptRow(row["prompt_ids"], prompt, json.loads(row["extra"]), endings[type(prompt)]))
    return rows


def _unfit(args: PPOConfig, adapter: dict[str, Any] | None) -> list[str]:
    """Settings that mean nothing here, or that several roles on one base cannot have."""
    found = [f"{name}: online training has no use for it" for name in _UNUSED if getattr(args, name)]
    if args.eval_strategy != "no":
        found.append("eval_strategy: there is no held-out loss online; the evaluate stage compares replies")
    if args.fp16:
        found.append("fp16: its rounding drowns the probability ratios; use bf16 or float32")
    if (adapter or {}).get("bias", "none") != "none":
        found.append("adapter.bias: policy and critic share the base, and with it its biases; use none")
    if any(os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true" for kind in ("FSDP", "DEEPSPEED")):
        found.append("fsdp and deepspeed: runs on one device or data parallel (DDP)")
    if args.sampler == "vllm" and importlib.util.find_spec("vllm") is None:
        found.append("sampler: vllm is not installed (pip install vllm)")
    if args.sampler == "vllm" and args.world_size > 1:
        found.append("sampler: vllm runs on one GPU in one process; on several use transformers")
    return found


def _check_rewards(project: ProjectConfig, stage: str) -> None:
    """Hold, before anything trains, that the rewards are there; the run's own model may still be to come."""
    weights = rewards_of(project, stage)
    if not weights:
        raise UserError(
            f"{project.path}: stages.ppo has nothing to maximise: add a reward stage, or a function to rewards:"
        )
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            raise UserError(f"stages.ppo.rewards.{name}: expected a weight, not {weight!r}")
    if OWN in weights and OWN not in project.stages:
        raise UserError(f"stages.ppo.rewards: there is no {OWN!r} stage in {project.path}")
    load_rewards(project, names=[name for name in weights if name != OWN])


def _rewards(context: StageContext, roles: Roles) -> Rewards:
    """What is maximised; the run's own reward model from the policy's base where it is there."""
    weights = rewards_of(context.project, context.name)
    adapter = OWN in weights and roles.reward_head is not None
    loaded = load_rewards(context.project, context.parents, [name for name in weights if name != OWN or not adapter])
    if OWN in weights and not adapter:
        print("ppo: the reward model is a model of its own: it does not fit on the policy's base", file=sys.stderr)
    return Rewards({name: loaded.get(name) for name in weights}, {name: float(one) for name, one in weights.items()})


def _last(trainer: PPOTrainer) -> dict[str, Any]:
    """What the last rollout said, for the stage's record."""
    rows = [row for row in trainer.state.log_history if "objective/scores" in row]
    if not rows:
        return {}
    names = ("objective/scores", "objective/kl", "response/length", "response/eos_share", "episodes")
    return {
        **{name.rpartition("/")[2]: rows[-1][name] for name in names},
        "scores_first": rows[0]["objective/scores"],
        "rollouts": len(trainer.history),
        "warning": hacking_signs(trainer.history),
    }
