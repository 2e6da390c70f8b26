"""Settings of the ppo stage. Read by the config layer from this source, so annotations stay simple."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from rlhf.config import ranges
from rlhf.objectives.advantages import ESTIMATORS, Estimator


@dataclass
class PPOConfig(TrainingArguments):
    """Everything of `transformers.TrainingArguments`, and what online training adds.

    A rollout is `per_device_train_batch_size × gradient_accumulation_steps × num_mini_batches × processes` replies. It
    is gone through `num_ppo_epochs` times; each minibatch is one optimizer step. `max_steps` counts optimizer steps and
    is rounded up to whole rollouts, `save_steps` and `logging_steps` to the nearest whole number of them.
    """

    advantage: str = "gae"
    """Advantage estimator: a function of rlhf/objectives/advantages.py. One that needs values trains a critic."""
    rewards: dict[str, float] | None = None
    """Name: weight. `reward` is the run's own reward model, the others stand under the project's `rewards:`. Without
    it: the run's reward model if there is one, else all under `rewards:` with weight 1."""
    normalize_samples: int = 128
    """Replies of the starting policy by which each reward is brought to mean 0 and std 1; 0 leaves them as they are."""
    samples_per_prompt: int = 1
    """Replies to a prompt; the prompt is computed once for all. At least 2 where the estimator compares them."""
    max_new_tokens: int = 128
    """Longest reply, in tokens."""
    max_length: int | None = None
    """Longest prompt and reply together; prompts that leave no room for `max_new_tokens` are dropped."""
    temperature: float = 1.0
    """Sampling temperature; it divides the logits in every log-probability."""
    sampler: str = "transformers"
    """What samples: `transformers` in the trainer's process, or `vllm` on the same GPU."""
    sampling_batch_size: int = 64
    """Replies sampled at once by transformers."""
    vllm_memory: float = 0.3
    """Share of the GPU's memory for vLLM."""
    total_episodes: int | None = None
    """Replies in all; without it `num_train_epochs` passes over the prompts."""
    num_ppo_epochs: int = 4
    """How often a rollout is gone through."""
    num_mini_batches: int = 1
    """Optimizer steps in one pass over a rollout."""
    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """Trace decay λ of generalised advantage estimation."""
    cliprange: float = 0.2
    """Clipping of the policy's ratio."""
    cliprange_value: float = 0.2
    """Clipping of the critic's change."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy."""
    kl_coef: float = 0.05
    """β: what a nat of KL to the reference costs, in units of the (normalised) score."""
    kl_estimator: str = "k1"
    """Estimate of each token's KL in the reward: k1, k2 or k3."""
    kl_target: float | None = None
    """KL (nats a reply) at which an adaptive β aims; null keeps β fixed."""
    kl_horizon: float = 10000.0
    """Episodes over which an adaptive β adjusts."""
    truncated: str = "bootstrap"
    """A reply cut at max_new_tokens: `bootstrap` from the critic's value instead of a score, or `score` it as it
    stands. Without a critic it is always scored."""
    missing_eos_penalty: float = 1.0
    """Taken from the reward of a reply that was cut."""
    whiten_rewards: bool = False
    """Scale token rewards to unit variance, their mean kept."""
    whiten_advantages: bool = True
    """Bring advantages to mean 0 and variance 1, over all processes."""
    critic_from: str = "reward"
    """What the critic starts from: the `reward` model where it shares the policy's architecture and tokenizer, or the
    `policy` with a head of zeros."""
    critic_learning_rate: float | None = None
    """Learning rate of the critic; null: the policy's."""
    critic_warmup_rollouts: int = 0
    """Rollouts at the start in which the critic learns alone."""
    target_kl: float | None = None
    """Approximate KL (nats a token) to the sampling policy at which the rest of a rollout's steps is skipped."""
    max_ratio: float = 10.0
    """Mean probability ratio above which an optimizer step is skipped."""
    max_importance_weight: float = 2.0
    """Where another engine samples: cap of the weight π_trainer/π_sampler."""
    log_completions: int = 4
    """Replies of each rollout written to rollouts.jsonl."""

    def check(self) -> list[str]:
        """What is wrong with the settings, a line each, beginning with the field."""
        names = {"advantage": tuple(ESTIMATORS)}
        problems = [
            f"{name}: {problem}"
            for name, value in vars(self).items()
            if (problem := ranges.problem("ppo", name, value, names.get(name, ()))) is not None
        ]
        smallest = self.estimator.min_group if self.advantage in ESTIMATORS else 1
        if self.samples_per_prompt < smallest:
            problems.append(
                f"samples_per_prompt: must be at least {smallest} for {self.advantage}, not {self.samples_per_prompt}"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            problems.append("kl_target: an adaptive kl_coef grows by factors, and stays 0 from 0; start it above")
        replies = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if not problems and replies % self.samples_per_prompt:
            problems.append(
                f"samples_per_prompt: {self.samples_per_prompt} does not divide the {replies} replies of an optimizer "
                "step (per_device_train_batch_size × gradient_accumulation_steps)"
            )
        return problems

    @property
    def estimator(self) -> Estimator:
        """The advantage estimator and what it needs."""
        return ESTIMATORS[self.advantage]

    @property
    def replies_per_process(self) -> int:
        """Replies of a rollout that one process samples."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def prompts_per_process(self) -> int:
        """Prompts of a rollout that one process replies to."""
        return self.replies_per_process // self.samples_per_prompt

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps on one rollout."""
        return self.num_ppo_epochs * self.num_mini_batches


def whole_rollouts(args: PPOConfig, prompts: int) -> None:
    """Bring the numbers of steps to whole rollouts, in place."""
    steps, replies = args.steps_per_rollout, args.replies_per_process * args.world_size
    episodes = args.total_episodes or args.num_train_epochs * prompts * args.samples_per_prompt
    rollouts = math.ceil(args.max_steps / steps) if args.max_steps > 0 else max(1, math.ceil(episodes / replies))
    args.max_steps = rollouts * steps
    unit = steps
    for name in (
        "logging_steps",
        "save_steps",
    ):  # no checkpoint between two lines of the log: it would lose half of one
        given = getattr(args, name)
        wanted = given * args.max_steps if given < 1 else given
        unit *= max(1, round(wanted / unit))
        setattr(args, name, unit)


_UNUSED = ("neftune_noise_alpha", "auto_find_batch_size", "load_best_model_at_end", "label_smoothing_factor")


def unfit(args: PPOConfig, adapter: dict[str, Any] | None) -> list[str]:
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
