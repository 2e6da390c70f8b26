"""Settings of the ppo stage. Read by the config layer from this source, so annotations stay simple."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from rlhf.config import trainer_fields
from rlhf.objectives.advantages import ESTIMATORS, Estimator
from rlhf.policies.settings import SamplingSettings


@dataclass
class RewardSettings:
    """What is maximised."""

    rewards: dict[str, float] | None = None
    """Name: weight. `reward` is the run's own reward model, the others stand under the project's `rewards:`. A reward
    with more weight counts more against the others. Without this setting it is the run's reward model if there is one,
    else all under `rewards:` with weight 1."""
    normalize_samples: int = 128
    """Completions of the starting policy on which each reward is brought to mean 0 and standard deviation 1, so that
    weights and `kl_coef` mean the same everywhere. More estimates the scale better and takes longer once; 0 leaves
    rewards as they are. Usually 64 to 1024."""
    whiten_rewards: bool = False
    """Scale token rewards to unit variance, their mean kept: the run no longer depends on the scale of rewards and
    `kl_coef` together."""


@dataclass
class KLSettings:
    """How far the policy may move from its reference."""

    kl_coef: float = 0.05
    """β: what a nat of KL to the reference costs, in units of the (normalised) score. More keeps the policy near the
    reference and improves the score less; 0 lets it go where the reward is wrong. Usually 0.01 to 0.2."""
    kl_estimator: str = "k1"
    """Estimate of each token's KL in the reward: `k1` is unbiased and noisy, `k2` biased with little noise, `k3`
    unbiased and never negative (objectives/kl.py)."""
    kl_target: float | None = None
    """KL (nats a completion) at which an adaptive β aims: above it β grows, below it β falls. More lets the policy move
    further. Null keeps β fixed. Usually 2 to 20."""
    kl_horizon: float = 10000.0
    """Episodes over which an adaptive β adjusts by about a fifth. More adjusts slower and steadier. Usually between a
    tenth of the run and all of it."""


@dataclass
class CriticSettings:
    """How the critic learns, where the estimator needs one."""

    critic: str = "separate"
    """`separate` trains a critic of its own, an adapter on the shared base or, with `adapter: null`, a model. `shared`
    is a head on the policy's states: one forward and one backward pass serve both (24 N operations a token with LoRA
    instead of 40 N), and the value loss moves the policy's weights too (docs/ppo.md)."""
    critic_from: str = "reward"
    """What the critic starts from: the `reward` model where it shares the policy's architecture and tokenizer, or the
    `policy` with a head of zeros, which starts unbiased and knows nothing. A `shared` critic always has the latter."""
    critic_learning_rate: float | None = None
    """Learning rate of the critic; null takes the policy's. More fits values faster and noisier. Usually 1 to 10 times
    the policy's."""
    critic_warmup_rollouts: int = 0
    """Rollouts at the start in which the critic learns alone; of a `shared` critic the head does. More spares the
    policy a critic that is still wrong, and costs these rollouts. Usually 0 to 20."""
    cliprange_value: float = 0.2
    """How far the critic's value may move from what it was when sampled, in units of the return. Less is steadier and
    slower; `.inf` clips nothing. Usually 0.1 to 0.5."""
    vf_coef: float = 0.1
    """Weight of the value loss. More gives the critic a larger part of the gradient, whose norm is limited together
    with the policy's. Usually 0.1 to 1."""


@dataclass
class TruncationSettings:
    """What a completion is worth that was cut at the limit."""

    truncated: str = "bootstrap"
    """What a completion cut at max_new_tokens is worth: what the critic expects of the rest (`bootstrap`), or its score
    as it stands (`score`), for models that never end. Without a critic it is always scored."""
    missing_eos_penalty: float = 1.0
    """Taken from the reward of a completion that was cut, in units of the (normalised) score. More makes the policy end
    sooner. Usually 0 to 2."""


@dataclass
class PPOConfig(RewardSettings, KLSettings, CriticSettings, TruncationSettings, SamplingSettings, TrainingArguments):
    """The loop itself; with the groups above, `SamplingSettings`, and all of `transformers.TrainingArguments`.

    A rollout is `per_device_train_batch_size × gradient_accumulation_steps × num_mini_batches × processes` completions.
    It is gone through `num_ppo_epochs` times; each minibatch is one optimizer step. `max_steps` counts optimizer steps
    and is rounded up to whole rollouts, `save_steps` and `logging_steps` to the nearest whole number of them.
    """

    advantage: str = "gae"
    """Advantage estimator: a function of rlhf/objectives/advantages.py. For one that reads values a critic is trained.
    `exact` samples nothing: it takes every action of an input with its probability, where they can be listed (the
    classes of a label policy). Batch sizes and `total_episodes` then count inputs."""
    samples_per_prompt: int = 1
    """Completions of a prompt; the prompt is computed once for all. More compares better and sees fewer prompts in a
    rollout. At least 2 where the estimator compares them; usually 4 to 16 there."""
    total_episodes: int | None = None
    """Completions in all. More learns longer and moves further from the reference. Null: `num_train_epochs` passes over
    the prompts. `max_steps`, where it is given, comes before it. Usually 10,000 to 1,000,000."""
    num_ppo_epochs: int = 4
    """How often a rollout is gone through. More learns more from each completion, by a policy ever further from the
    policy that wrote it. Usually 1 to 4."""
    num_mini_batches: int = 1
    """Optimizer steps in one pass over a rollout. More makes rollouts larger and the policy older by the last step.
    Usually 1 to 8."""
    gamma: float = 1.0
    """Discount γ of a reward for each token before it. Less gives early tokens less of the score at the end; 1 is right
    where completions are short. Usually 0.99 to 1."""
    lam: float = 0.95
    """Trace decay λ of generalised advantage estimation. More trusts the rewards (less bias, more noise), less the
    critic. Usually 0.9 to 1."""
    cliprange: float = 0.2
    """How far a token's probability ratio may go from 1 before its gradient stops. Less is steadier and slower.
    Usually 0.1 to 0.3."""
    entropy_coef: float = 0.0
    """Weight of the policy's entropy in the loss. More keeps the policy from narrowing early and makes worse text;
    above 0 it costs memory. Usually 0 to 0.01."""
    whiten_advantages: bool = True
    """Bring advantages to mean 0 and variance 1, over all processes: steps are then of one size whatever the scores."""
    target_kl: float | None = None
    """Approximate KL (nats a token) to the sampling policy at which the rest of a rollout's steps is skipped. Less
    skips more; null skips none. Usually 0.01 to 0.1."""
    max_ratio: float = 10.0
    """Mean probability ratio above which an optimizer step is skipped: a guard against a step that has gone wrong. Less
    skips more. Usually 2 to 10."""
    max_importance_weight: float = 2.0
    """Where another engine samples, or the weights are below float32: cap of the weight π_trainer/π_sampler of a token.
    Less trusts the sampler's tokens less where the two disagree; `.inf` truncates nothing. Usually 1 to 5."""
    gather_for_rollouts: bool | None = None
    """Under FSDP2, whether every process holds all weights while it samples. Without, it gathers each layer for every
    token: memory as in training, and much slower. Null decides by the free memory, of which the weights may take half.
    """
    log_completions: int = 4
    """Completions of each rollout written to rollouts.jsonl. More is more to read, and a larger file."""

    def check(self) -> list[str]:
        """What is wrong with the settings, a line each, beginning with the field."""
        names = {"advantage": tuple(ESTIMATORS)}
        problems = [
            f"{name}: {problem}"
            for name, value in vars(self).items()
            if (problem := trainer_fields.range_problem("ppo", name, value, names.get(name, ()))) is not None
        ]
        smallest = self.estimator.min_group if self.advantage in ESTIMATORS else 1
        if self.samples_per_prompt < smallest:
            problems.append(
                f"samples_per_prompt: must be at least {smallest} for {self.advantage}, not {self.samples_per_prompt}"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            problems.append("kl_target: an adaptive kl_coef grows by factors, and stays 0 from 0; start it above")
        step = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if not problems and step % self.samples_per_prompt:
            problems.append(
                f"samples_per_prompt: {self.samples_per_prompt} does not divide the {step} replies of an optimizer "
                "step (per_device_train_batch_size × gradient_accumulation_steps)"
            )
        return problems

    @property
    def estimator(self) -> Estimator:
        """The advantage estimator and what it needs."""
        return ESTIMATORS[self.advantage]

    @property
    def bootstraps(self) -> bool:
        """Whether a cut completion is worth what the critic expects, instead of its score."""
        return self.truncated == "bootstrap" and self.estimator.needs_values

    @property
    def critic_start(self) -> str | None:
        """What the critic starts from, `shared` for a head on the policy; None where the estimator needs none."""
        if not self.estimator.needs_values:
            return None
        return "shared" if self.critic == "shared" else self.critic_from

    @property
    def completions_per_process(self) -> int:
        """Completions of a rollout that one process samples."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_mini_batches

    @property
    def prompts_per_process(self) -> int:
        """Prompts of a rollout that one process acts on."""
        return self.completions_per_process // self.samples_per_prompt

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps on one rollout."""
        return self.num_ppo_epochs * self.num_mini_batches


def take_every_action(args: PPOConfig, count: int | None) -> str | None:
    """Let each input have all of its actions instead of samples, in place, where the estimator asks for that.

    Args:
        args: Settings; what counts completions counts inputs before, and all their actions after.
        count: Actions of an input; None where they cannot be listed.

    Returns:
        What is wrong, beginning with the field.
    """
    if not args.estimator.every_action:
        return None
    if count is None:
        return f"advantage: {args.advantage} needs a policy whose completions can be listed, as the classes of a label"
    if args.samples_per_prompt != 1:
        return f"samples_per_prompt: {args.advantage} takes every action once; leave it out"
    args.samples_per_prompt = count
    args.per_device_train_batch_size *= count
    args.per_device_eval_batch_size *= count
    if args.total_episodes is not None:
        args.total_episodes *= count
    return None


def round_to_rollouts(args: PPOConfig, prompts: int) -> None:
    """Bring the numbers of steps to whole rollouts, in place."""
    steps, completions = args.steps_per_rollout, args.completions_per_process * args.world_size
    episodes = args.total_episodes or args.num_train_epochs * prompts * args.samples_per_prompt
    rollouts = math.ceil(args.max_steps / steps) if args.max_steps > 0 else max(1, math.ceil(episodes / completions))
    args.max_steps = rollouts * steps
    unit = steps
    for name in (
        "logging_steps",
        "save_steps",
    ):  # no checkpoint between two lines of the log: half of one would be lost
        given = getattr(args, name)
        wanted = given * args.max_steps if given < 1 else given
        unit *= max(1, round(wanted / unit))
        setattr(args, name, unit)


_UNUSED = ("neftune_noise_alpha", "auto_find_batch_size", "load_best_model_at_end", "label_smoothing_factor")


def unsupported_settings(args: PPOConfig, adapter: dict[str, Any] | None) -> list[str]:
    """Settings that mean nothing here, or that several roles on one base cannot have."""
    problems = [f"{name}: online training has no use for it" for name in _UNUSED if getattr(args, name)]
    if args.eval_strategy != "no":
        problems.append("eval_strategy: there is no held-out loss online; the evaluate stage compares replies")
    if args.fp16:
        problems.append("fp16: its rounding drowns the probability ratios; use bf16 or float32")
    if (adapter or {}).get("bias", "none") != "none":
        problems.append("adapter.bias: policy and critic share the base, and with it its biases; use none")
    return problems
