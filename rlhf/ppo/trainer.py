"""Proximal policy optimisation on `transformers.Trainer`.

An epoch of the Trainer is one rollout: it is collected when the epoch begins, and gone through in minibatches, one
optimizer step each. So whatever the Trainer does between epochs happens between rollouts, checkpoints above all.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer

from rlhf import interrupts
from rlhf.errors import Incident, SamplerFailed, UserError
from rlhf.objectives.kl import adapt_kl_coefficient
from rlhf.policies.completion import row_seed
from rlhf.policies.protocol import Input, Outputs, Policy
from rlhf.ppo import diagnostics
from rlhf.ppo.config import PPOConfig, round_to_rollouts
from rlhf.ppo.loss import micro_batch_loss
from rlhf.ppo.minibatches import RolloutLoader
from rlhf.ppo.rollout import MicroBatch, Rollout, collect, prompt_numbers, score
from rlhf.rewards.compose import Rewards
from rlhf.rewards.load import OWN_REWARD
from rlhf.training.fsdp import ShardedTrainer, parameter_groups
from rlhf.training.states import random_state, set_random_state

WEIGHTS, STATE = "roles.safetensors", "ppo_state.json"
"""Files of a checkpoint: everything that is trained, and the few numbers that PPO carries from rollout to rollout."""


_LARGE_STEP = 0.2
"""Approximate KL, nats a token, of a step's policy to the policy that sampled, above which there is a warning; 0.05 is
common."""


class PPOTrainer(ShardedTrainer, Trainer):
    """PPO, RLOO, GRPO and REINFORCE on one loop.

    Args:
        policy: What is optimised, with its reference and maybe critic and reward model.
        args: Settings; `max_steps`, `save_steps` and `logging_steps` are brought to whole rollouts.
        prompts: What the policy acts on.
        rewards: What is maximised.
        samples_file: Where some completions of each rollout are written.
        stage: The stage's name, for messages.
        **kwargs: Passed to `transformers.Trainer` (callbacks, optimizers).

    Raises:
        UserError: It is launched under DeepSpeed, or under FSDP that accelerate is to apply (`models.fsdp`).
    """

    args: PPOConfig

    def __init__(
        self,
        policy: Policy[Any, Any],
        args: PPOConfig,
        prompts: Sequence[Input],
        rewards: Rewards,
        samples_file: Path | None = None,
        stage: str = "ppo",
        **kwargs: Any,
    ) -> None:
        self.policy, self.prompts, self.rewards, self.samples_file = policy, prompts, rewards, samples_file
        self.stage, self.gathers = stage, args.gather_for_rollouts
        args._n_gpu = min(1, args.n_gpu)  # several GPUs are several processes: DataParallel cannot part a rollout
        round_to_rollouts(args, len(prompts))
        super().__init__(model=policy, args=args, train_dataset=prompts, **kwargs)  # type: ignore[arg-type]
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(f"stages.{stage}: runs data parallel (DDP) or under FSDP2, not under other engines")
        self.loss_is_scaled_for_ga = True  # every mean has the denominator of the whole optimizer step
        self.kl_coef = args.kl_coef
        self.history: list[dict[str, float]] = []
        self._metrics: defaultdict[str, list[float]] = defaultdict(list)
        self._sums: defaultdict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=args.device))
        self._rollout = 0
        self._rows: list[int] = []
        self._stopped = False
        self._warned: list[str] = []

    # rollouts

    def get_train_dataloader(self) -> Any:
        """The micro-batches of one rollout."""
        return RolloutLoader(self)

    def collect_rollout(self, number: int) -> Rollout:
        """Rollout `number` with the policy as it is now."""
        args, world, rank = self.args, self.args.world_size, self.args.process_index
        self._rollout, self._stopped = number, False
        with self._may_end_at_once(), torch.no_grad(), self.accelerator.autocast(), self.free_calls():
            self._fit_reward_scale()
            count = args.prompts_per_process * world
            places = range(rank, count, world)
            seeds = [
                [row_seed(args.seed, "rollout", number, place, sample) for sample in range(args.samples_per_prompt)]
                for place in places
            ]
            inputs = [self.prompts[place] for place in self.prompts_of(number)]
            collected = collect(
                policy=self.policy, rewards=self.rewards, args=args, inputs=inputs, seeds=seeds, kl_coef=self.kl_coef,
                reduce=self.reduce,
            )  # fmt: skip
            names = list(self.rewards.parts)
            metrics = diagnostics.rollout_metrics(
                collected=collected, names=names, kl_coef=self.kl_coef, reduce=self.reduce
            )
            if number == 0:
                distance = diagnostics.reference_distance(collected=collected, reduce=self.reduce)
                self._check_agreement("before its first step the policy is off its reference", distance)
        self._finish_rollout(
            number, metrics, diagnostics.sample_rows(collected=collected, names=names, count=args.log_completions)
        )
        return collected.rollout

    def prompts_of(self, rollout: int) -> list[int]:
        """Numbers of the prompts that this process completes in a rollout."""
        world, rank = self.args.world_size, self.args.process_index
        count = self.args.prompts_per_process * world
        return prompt_numbers(rollout=rollout, count=count, prompts=len(self.prompts), seed=self.args.seed)[rank::world]

    @contextlib.contextmanager
    def _may_end_at_once(self) -> Iterator[None]:
        """Collects a rollout, which a signal or a sampler that fails may end: a checkpoint then stands before it.

        With several processes a signal waits for its end, since none can tell where the others are; a sampler fails on
        all of them.

        Raises:
            Interrupted: A signal came.
            SamplerFailed: What samples has failed.
        """
        before = random_state()
        try:
            with interrupts.at_once() if self.args.world_size == 1 else contextlib.nullcontext():
                yield
        except (interrupts.Interrupted, SamplerFailed):
            if self.is_in_train and self.state.global_step:
                set_random_state(before)
                self.scheduled = False
                self._save_checkpoint(self.model, None)
            raise

    def _fit_reward_scale(self) -> None:
        """Before the first rollout, bring each reward to mean 0 and std 1 on completions of the starting policy.

        A critic that was a reward model follows, so that its values are in the same units.
        """
        if self._rollout > 0 or len(self.rewards.mean_K):
            return
        if self.args.normalize_samples:
            self.rewards.fit_scale(self._reference_scores())
        if self.policy.critic_from_reward and OWN_REWARD in self.rewards.parts:
            self.policy.scale_values(*self.rewards.scale_of(OWN_REWARD))

    def _reference_scores(self) -> torch.Tensor:
        """Scores of completions of the starting policy by each reward, [B, K]."""
        args = self.args
        world, rank = args.world_size, args.process_index
        count = math.ceil(args.normalize_samples / world) * world
        numbers = prompt_numbers(rollout=0, count=count, prompts=len(self.prompts), seed=args.seed)
        inputs = [self.prompts[numbers[place]] for place in range(rank, count, world)]
        seeds = [[row_seed(args.seed, "reference", place)] for place in range(rank, count, world)]
        scores_BK = score(
            policy=self.policy, rewards=self.rewards, inputs=inputs, groups=self.policy.sample(inputs, seeds),
            batch_size=args.per_device_eval_batch_size,
        ).to(args.device)  # fmt: skip
        self.serve_other_processes()
        every = self.accelerator.gather(scores_BK).cpu()
        # process r has places r, r + world, …; what was sampled only to give all of them as many is left out
        place = torch.arange(count).view(-1, world).T.flatten()
        return every[place < args.normalize_samples]

    def _finish_rollout(self, number: int, metrics: dict[str, float], samples: list[dict[str, Any]]) -> None:
        """Log a rollout, look for signs of trouble, adapt the KL coefficient."""
        episodes = self.args.completions_per_process * self.args.world_size
        for name, value in {**metrics, "episodes": float(episodes * (number + 1))}.items():
            self._metrics[name].append(value)
        if "objective/kl" not in metrics:  # only what is finite is there
            raise Incident(
                f"stages.{self.stage}: the KL of rollout {number} is not finite: the run has diverged; lower "
                "learning_rate"
            )
        names = {"objective/scores": "scores", "response/length": "length", "objective/kl": "kl"}
        if all(name in metrics for name in names):
            self.history.append({short: metrics[name] for name, short in names.items()})
        self._warn(metrics)
        if self.is_world_process_zero() and self.samples_file is not None:
            with self.samples_file.open("a", encoding="utf-8") as file:
                for row in samples:
                    row = {"step": (number + 1) * self.args.steps_per_rollout, "rollout": number, **row}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if self.args.kl_target is not None:
            self.kl_coef = adapt_kl_coefficient(
                self.kl_coef, metrics["objective/kl"], self.args.kl_target, episodes, self.args.kl_horizon
            )

    def _warn(self, metrics: dict[str, float]) -> None:
        """Say in plain words what numbers alone would hide."""
        for kind, message in diagnostics.signs_of_trouble(metrics, self.args, self._rollout, self.history):
            self._warn_once(kind, message)

    def _warn_once(self, kind: str, message: str) -> None:
        """Warn on the main process, once for each kind."""
        if self.is_world_process_zero() and kind not in self._warned:
            print(f"{self.stage}: {message}", file=sys.stderr)
        self._warned = sorted({*self._warned, kind})

    def _check_agreement(self, what: str, distance: float) -> None:
        """Check that two ways to the same log-probabilities agree; warn of a small difference, refuse a large one."""
        message = diagnostics.disagreement(what, distance, self.policy.mismatch_hint)
        if message and distance > diagnostics.MAX_DISTANCE:
            raise UserError(f"stages.{self.stage}: {message}")
        if message:
            self._warn_once("distance", message)

    # optimisation

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Policy and critic in groups of their own, from explicit lists of what is trained."""
        if self.optimizer is None:
            whole: Any = self.model if model is None else model
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, whole)
            critic = {id(parameter) for parameter in self.policy.trained("critic").values()}
            decayed = set(self.get_decay_parameter_names(whole))
            rates = (self.args.learning_rate, self.args.critic_learning_rate or self.args.learning_rate)
            groups = parameter_groups(
                (parameter, rates[id(parameter) in critic], self.args.weight_decay if name in decayed else 0.0)
                for name, parameter in whole.named_parameters()
            )
            self.optimizer = kind(groups, **kwargs)
        return self.optimizer

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {**inputs, "micro_batch": inputs["micro_batch"].to(self.args.device)}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a micro-batch, role after role; nothing once the rollout's steps were stopped.

        A stopped step counts as a step, so that schedule, checkpoints and the number of rollouts stay as planned; with
        no gradients the optimizer leaves the weights alone.
        """
        loss = torch.zeros((), device=self.args.device)
        self._rows += inputs.get("rows", ())
        if self._stopped:
            if self.accelerator.sync_gradients:
                self._metrics["policy/stopped"].append(1.0)
            return loss
        for role in self._trained_roles():
            loss += super().training_step(model, {**inputs, "role": role}, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.average_gradients()
            self._end_of_step()
            self._rows.clear()
        return loss.nan_to_num(0.0, 0.0, 0.0)  # of a step that is skipped; `_end_of_step` reports what is not finite

    def _trained_roles(self) -> list[str]:
        """The roles that learn from this rollout, a forward and a backward pass each; `both` learn in one."""
        if not self.args.estimator.needs_values:
            return ["policy"]
        if self._rollout < self.args.critic_warmup_rollouts:
            return ["critic"]
        return ["both"] if self.policy.critic_on_policy else ["policy", "critic"]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a role, or of both, on a micro-batch, as its share of the optimizer step's mean.

        DDP averages gradients over processes; as the denominator is global already, the loss is multiplied by their
        number.
        """
        batch: MicroBatch = inputs["micro_batch"]
        outputs: Outputs = model(inputs["role"], batch.packed, self.args.entropy_coef > 0)
        loss, parts = micro_batch_loss(batch, outputs, self.args)
        for name, part in parts.items():
            self._sums[name] = self._sums[name] + part.detach()
        loss = loss * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def _end_of_step(self) -> None:
        """After the last micro-batch of an optimizer step: its metrics, and whether it and the next steps are taken."""
        names = list(self._sums)
        sums = self.reduce(torch.stack([self._sums.pop(name) for name in names]).double()).tolist()
        metrics = dict(zip(names, sums, strict=True))
        step = self.state.global_step + 1
        ratio, moved = metrics.get("policy/ratio", 1.0), metrics.get("policy/approxkl", 0.0)
        if self.policy.exact_log_probs and self.state.global_step % self.args.steps_per_rollout == 0:
            self._check_agreement(
                "at a rollout's first step the policy is off what it sampled with", math.sqrt(2 * moved)
            )
        skipped = ratio > self.args.max_ratio
        if skipped:
            cast(nn.Module, self.model).zero_grad(set_to_none=True)
            self._losses.clear()
            if self.is_world_process_zero():
                print(
                    f"{self.stage}: step {step} skipped: the mean probability ratio is {ratio:.1f} (max_ratio "
                    f"{self.args.max_ratio})",
                    file=sys.stderr,
                )
        elif broken := [name for name, value in metrics.items() if not math.isfinite(value)]:
            self.nonfinite(broken[0], self._losses, math.nan, self.model)
            skipped = True
        if moved > _LARGE_STEP:
            self._warn_once(
                "step",
                f"step {step} finds the policy {moved:.2f} nats a token from where it sampled: too far to learn from; "
                "lower learning_rate, or set target_kl",
            )
        self._stopped = self.args.target_kl is not None and moved > self.args.target_kl
        taken = {} if skipped else metrics
        for name, value in {**taken, "policy/skipped": float(skipped), "policy/stopped": 0.0}.items():
            self._metrics[name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the means of what was gathered since the last time."""
        logs |= {name: sum(values) / len(values) for name, values in self._metrics.items()}
        if "episodes" in logs:
            logs["episodes"] = self._metrics["episodes"][-1]
        self._metrics.clear()
        super().log(logs, start_time)

    def rows_of_step(self) -> list[int]:
        """Numbers of the prompts whose completions the step learns from, on this process."""
        return list(dict.fromkeys(self._rows))

    def may_stop(self) -> bool:
        """Whether the rollout's last step has been taken; a checkpoint has no place for a rollout."""
        return self.state.global_step % self.args.steps_per_rollout == 0

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over processes."""
        if self.args.world_size == 1:
            return tensor
        self.serve_other_processes()
        return self.accelerator.reduce(tensor.to(self.args.device), "sum").to(tensor.device)

    # checkpoints

    def save_weights(self, folder: Path) -> None:
        """Every role's trained weights, under its own name, and what PPO carries from rollout to rollout.

        Every process calls this; the main one writes.
        """
        self.policy.save(folder / WEIGHTS, self.args.should_save)
        if not self.args.should_save:
            return
        rewards = self.rewards
        state = {"kl_coef": self.kl_coef, "reward_mean": rewards.mean_K.tolist(), "reward_std": rewards.std_K.tolist(),
                 "history": self.history, "said": self._warned}  # fmt: skip
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

    @torch.no_grad()
    def load_weights(self, folder: Path) -> None:
        """Read what `save_weights` wrote."""
        self.policy.load(folder / WEIGHTS)
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        rewards = self.rewards
        self.kl_coef, self.history, self._warned = state["kl_coef"], state["history"], state["said"]
        rewards.mean_K = torch.tensor(state["reward_mean"], dtype=torch.float64)
        rewards.std_K = torch.tensor(state["reward_std"], dtype=torch.float64)
