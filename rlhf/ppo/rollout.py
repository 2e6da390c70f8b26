"""One rollout: a policy acts on inputs, what it did is scored, scores become advantages.

`collect` is the whole of it, in numbered steps; each step is a function of this file with keyword arguments only, or of
`objectives/`. Everything random in it follows from the project's seed and the rollout's number, and nothing from what
ran before: a resumed run sees the prompts and the completions that an uninterrupted run sees.

Axes: B = P · S completions, S of each of P inputs, in order; T actions (tokens) of the longest;
U = T + 1 states, before each action and after the last; K rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from rlhf import progress
from rlhf.objectives.advantages import Advantages
from rlhf.objectives.kl import KL_ESTIMATORS
from rlhf.objectives.losses import action_weights
from rlhf.objectives.masking import Reduce, whiten
from rlhf.policies.base import like_sizes
from rlhf.policies.completion import Completion, row_seed
from rlhf.policies.protocol import Input, Packed, Policy
from rlhf.ppo.config import PPOConfig
from rlhf.rewards.compose import Rewards, score_matrix

Groups = Sequence[Sequence[Completion]]
"""For each of P inputs its S completions; row p·S + s of the arrays is completion s of input p."""


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of a rollout, as one forward pass takes them; arrays [B, T] stop at their own longest completion."""

    packed: Packed
    mask_BT: torch.Tensor
    """Bool: actions that take part; false everywhere for a completion that could not be scored."""
    log_probs_BT: torch.Tensor
    advantages_BT: torch.Tensor
    returns_BT: torch.Tensor
    values_BT: torch.Tensor | None
    weights_BT: torch.Tensor | None
    tokens: float
    """Actions that take part in the whole optimizer step, on all processes: the denominator of every mean."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        return MicroBatch(
            **{name: value.to(device) if hasattr(value, "to") else value for name, value in vars(self).items()}
        )


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What the policy did and what it was worth: all that the optimizer steps read.

    All arrays are on the CPU, in float32.
    """

    inputs: Sequence[Any]
    """What the policy acted on, P of them."""
    completions: Groups
    mask_BT: torch.Tensor
    """Bool: actions that take part; false everywhere for a completion that could not be scored."""
    log_probs_BT: torch.Tensor
    """log π of the actions when they were sampled, nats."""
    advantages_BT: torch.Tensor
    returns_BT: torch.Tensor
    values_BT: torch.Tensor | None = None
    """The critic's values when they were sampled; None without a critic."""
    weights_BT: torch.Tensor | None = None
    """Truncated importance weights, where sampling and training compute different log-probabilities: another engine
    sampled, or weights are below float32. Of rows that are every action of an input, n times their probability. Else
    None."""

    def __post_init__(self) -> None:
        """Check shapes and types.

        Raises:
            ValueError: An array has another shape than the completions, or another type than it must.
        """
        sizes = {len(group) for group in self.completions}
        if len(self.inputs) != len(self.completions) or len(sizes) != 1:
            raise ValueError(
                f"{len(self.inputs)} inputs, {len(self.completions)} groups of completions of sizes {sorted(sizes)}"
            )
        lengths = [len(completion.ids) for group in self.completions for completion in group]
        shape = (len(lengths), max(lengths))
        for name, value in vars(self).items():
            if name.endswith("_BT") and value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, expected {shape}")
        if self.mask_BT.dtype != torch.bool or bool((self.mask_BT.sum(1) > torch.tensor(lengths)).any()):
            raise ValueError("mask_BT must be bool, and true at most at the actions of a completion")

    @property
    def samples(self) -> int:
        """Completions of an input."""
        return len(self.completions[0])

    def micro_batch(self, rows: Sequence[int], tokens: float, policy: Policy[Any, Any]) -> MicroBatch:
        """Some sequences; neighbours of the same input are packed together.

        Args:
            rows: Indices of sequences.
            tokens: The denominator of the optimizer step.
            policy: Packs them.
        """
        inputs: list[Any] = []
        completions: list[list[Completion]] = []
        last = None
        for row in rows:
            group, sample = divmod(row, self.samples)
            if group != last:
                inputs.append(self.inputs[group])
                completions.append([])
                last = group
            completions[-1].append(self.completions[group][sample])
        packed = policy.pack(inputs, completions)
        chosen = {
            name: value[list(rows), : packed.mask_BT.shape[1]]
            for name, value in vars(self).items()
            if name.endswith("_BT") and value is not None
        }
        return MicroBatch(packed=packed, **{"values_BT": None, "weights_BT": None, **chosen}, tokens=tokens)

    def by_length(self, inputs: Sequence[int], policy: Policy[Any, Any]) -> list[int]:
        """The rows of these inputs, groups together, shortest first, so that neighbours pad little."""
        longest = {p: max(self.completions[p], key=lambda completion: len(completion.ids)) for p in inputs}
        ordered = sorted(inputs, key=lambda p: (policy.size(self.inputs[p], [longest[p]]), p))
        return [p * self.samples + s for p in ordered for s in range(self.samples)]


class Sampled(NamedTuple):
    """B completions as arrays, zeros behind the end of each."""

    written_BT: torch.Tensor
    """Bool: the actions that were taken."""
    log_probs_BT: torch.Tensor
    """As the sampler gave them."""
    entropies_BT: torch.Tensor | None
    """None where the sampler does not know them."""
    cut_B: torch.Tensor
    """Bool: the completion ended at the limit and not by itself."""


class Measured(NamedTuple):
    """What the roles say of B completions; CPU, float32, 0 behind a completion's end."""

    reference_BT: torch.Tensor
    """log π_ref, nats."""
    values_BU: torch.Tensor | None
    """The critic's value before each action and after the last, [B, U]; None without a critic."""
    policy_BT: torch.Tensor | None
    """log π by a forward pass, where the sampler's differ from it (another engine, or weights below float32); else
    None."""


class Collected(NamedTuple):
    """A rollout with what it is described by."""

    rollout: Rollout
    completions: list[Completion]
    sampled: Sampled
    scores_BK: torch.Tensor
    """As each reward gave them, NaN where it gave none."""
    scores_B: torch.Tensor
    """Normalised, weighted, summed."""
    reference_BT: torch.Tensor
    paid_B: torch.Tensor
    """Sum of the rewards of all actions of a completion: its score less the price of its KL."""
    drawn_B: torch.Tensor
    """How much a completion counts in a mean over what the policy does: 1 for one that it drew, n times its probability
    for one of all n that there are."""


def collect(
    *,
    policy: Policy[Any, Any],
    rewards: Rewards,
    args: PPOConfig,
    inputs: Sequence[Input],
    seeds: Sequence[Sequence[int]],
    kl_coef: float,
    reduce: Reduce,
) -> Collected:
    """Collect a rollout; every process must call in step.

    Args:
        policy: Acts, as it is now.
        rewards: What is maximised.
        args: Settings.
        inputs: What the policy acts on.
        seeds: For each input a seed a completion.
        kl_coef: β now, units of the score a nat.
        reduce: Sums a tensor over all processes.
    """
    # 1. Sample, with the temperature and without top-k or top-p (Huang et al., 2023, "The N Implementation Details").
    #    An exact estimator takes every action there is instead, with its probability.
    every, size = args.estimator.every_action, args.per_device_eval_batch_size
    groups = policy.every_action(inputs) if every else policy.sample(inputs, seeds)
    completions = [completion for group in groups for completion in group]
    sampled = as_arrays(completions=completions)
    # 2. Score each completion by each reward; normalise, weigh and add (Huang et al., 2024, "N+").
    with progress.phase("scoring"):
        scores_BK = score(policy=policy, rewards=rewards, inputs=inputs, groups=groups, batch_size=size)
    # 3. Measure under the other roles: reference log-probabilities, and the critic's values.
    with progress.phase("measuring"):
        measured = measure(policy=policy, inputs=inputs, groups=groups, batch_size=size)
    log_probs_BT = sampled.log_probs_BT if measured.policy_BT is None else measured.policy_BT
    scores_B = rewards.total(scores_BK, reduce)
    mask_BT = sampled.written_BT & ~scores_B.isnan()[:, None]
    # 4. Price the KL of each token and pay the score at the last one (Ziegler et al., 2019, section 2.1).
    rewards_BT = token_rewards(
        scores_B=scores_B, kl_BT=KL_ESTIMATORS[args.kl_estimator](log_probs_BT, measured.reference_BT), mask_BT=mask_BT,
        kl_coef=kl_coef, cut_B=sampled.cut_B, missing_eos_penalty=args.missing_eos_penalty, bootstrap=args.bootstraps,
    )  # fmt: skip
    paid_B = rewards_BT.sum(1)
    if args.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False, reduce=reduce)
    # 5. Estimate advantages and returns (objectives/advantages.py, each estimator with its source).
    advantages_BT, returns_BT = estimate(
        args=args, rewards_BT=rewards_BT, values_BU=measured.values_BU, mask_BT=mask_BT, cut_B=sampled.cut_B,
        log_probs_BT=log_probs_BT, reduce=reduce,
    )  # fmt: skip
    # 6. Weigh actions that the policy would have taken more or less often than they stand here.
    other_BT = None if measured.policy_BT is None else sampled.log_probs_BT
    weights_BT = action_weights(log_probs_BT, len(groups[0]) if every else None, other_BT, args.max_importance_weight)
    rollout = Rollout(
        inputs=inputs, completions=groups, mask_BT=mask_BT, log_probs_BT=log_probs_BT, advantages_BT=advantages_BT,
        returns_BT=returns_BT, values_BT=None if measured.values_BU is None else measured.values_BU[:, :-1],
        weights_BT=weights_BT,
    )  # fmt: skip
    drawn_B = weights_BT[:, 0] if every and weights_BT is not None else torch.ones(len(completions))
    return Collected(rollout, completions, sampled, scores_BK, scores_B, measured.reference_BT, paid_B, drawn_B)


def as_arrays(*, completions: Sequence[Completion]) -> Sampled:
    """Step 1, its result as arrays."""
    lengths_B = torch.tensor([len(completion.ids) for completion in completions])
    longest = int(lengths_B.max())
    known = bool(completions[0].entropies)
    return Sampled(
        written_BT=torch.arange(longest)[None] < lengths_B[:, None],
        log_probs_BT=padded([completion.log_probs for completion in completions], longest),
        entropies_BT=padded([completion.entropies for completion in completions], longest) if known else None,
        cut_B=torch.tensor([not completion.finished for completion in completions]),
    )


def score(
    *, policy: Policy[Any, Any], rewards: Rewards, inputs: Sequence[Input], groups: Groups, batch_size: int
) -> torch.Tensor:
    """Step 2: scores of every completion by every reward as it gives them, [B, K], NaN for none.

    A reward function is called outside of the policy's autocast: a model scores as it does elsewhere.
    """
    given = policy.reward_arguments(inputs, groups)
    columns: list[Sequence[float | None]] = []
    for function in rewards.parts.values():
        if function is None:
            columns.append(policy.own_scores(inputs, groups, batch_size))
        else:
            with torch.autocast(policy.device.type, enabled=False):
                columns.append(function(given.prompts, given.completions, **given.columns))
    return score_matrix(columns)


@torch.no_grad()
def measure(*, policy: Policy[Any, Any], inputs: Sequence[Input], groups: Groups, batch_size: int) -> Measured:
    """Step 3: completions under the reference and the critic, and under the policy where its sampler is not exact.

    It is not where another engine samples, or where weights are below float32.

    Args:
        policy: The roles.
        inputs: What the policy acted on.
        groups: What it did.
        batch_size: Sequences a forward pass.
    """
    samples = len(groups[0])
    longest = max(len(completion.ids) for group in groups for completion in group)
    count = len(inputs) * samples
    reference_BT = torch.zeros(count, longest)
    values_BU = torch.zeros(count, longest + 1) if policy.has_critic else None
    policy_BT = None if policy.exact_log_probs else torch.zeros(count, longest)
    sizes = [policy.size(row, group) for row, group in zip(inputs, groups, strict=True)]
    for chosen in like_sizes(sizes, max(1, batch_size // samples)):
        rows = torch.tensor([p * samples + s for p in chosen for s in range(samples)])
        packed = policy.pack([inputs[p] for p in chosen], [groups[p] for p in chosen]).to(policy.device)
        width = packed.mask_BT.shape[1]
        reference_BT[rows, :width] = policy.reference_log_probs(packed).cpu()
        with policy.one_pass():
            if policy_BT is not None:
                policy_BT[rows, :width] = policy.log_probs(packed)[0].cpu()
            if values_BU is not None:
                values_BU[rows, : width + 1] = policy.values(packed).cpu()
                values_BU[rows, width:] = values_BU[rows, width : width + 1]  # after the last, to the end of the row
    return Measured(reference_BT, values_BU, policy_BT)


def token_rewards(
    *,
    scores_B: torch.Tensor,
    kl_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    kl_coef: float,
    cut_B: torch.Tensor,
    missing_eos_penalty: float,
    bootstrap: bool,
) -> torch.Tensor:
    """Step 4: r_t = −β KL_t, and at the last token of a completion also its score.

    A completion that was cut loses `missing_eos_penalty` at its last token. Its score is that of a text without an end:
    with `bootstrap` it is left out, as the critic's value stands for what was still to come.

    Args:
        scores_B: Scores, [B]; NaN for a completion that has none.
        kl_BT: Estimate of each token's KL to the reference, nats, [B, T].
        mask_BT: Bool, true at the tokens of completions that take part, from the start of a row.
        kl_coef: β, units of the score a nat.
        cut_B: Bool, [B]: the completion ended at the limit.
        missing_eos_penalty: In units of the score.
        bootstrap: Whether a cut completion is worth what the critic expects, instead of its score.

    Returns:
        [B, T], 0 where the mask is false.

    Source: KL in the reward, score at the end: Ziegler et al. (2019), section 2.1; the penalty: Huang et al., "The N+
    Implementation Details of RLHF with PPO" (2024), detail 6.
    """
    rewards_BT = (-kl_coef * kl_BT.float()).masked_fill(~mask_BT, 0.0)
    at_end_B = torch.where(cut_B & bootstrap, 0.0, scores_B.float()) - missing_eos_penalty * cut_B.float()
    rows = mask_BT.any(1)
    last_B = mask_BT.sum(1) - 1
    rewards_BT[rows, last_B[rows]] += at_end_B[rows]
    return rewards_BT


def estimate(
    *,
    args: PPOConfig,
    rewards_BT: torch.Tensor,
    values_BU: torch.Tensor | None,
    mask_BT: torch.Tensor,
    cut_B: torch.Tensor,
    log_probs_BT: torch.Tensor,
    reduce: Reduce,
) -> Advantages:
    """Step 5: advantages and returns by the estimator that the settings name, [B, T] both.

    Args:
        args: The estimator, γ, λ, and whether advantages are whitened.
        rewards_BT: Of each action.
        values_BU: The critic's values before each action and after the last, [B, U]; None without a critic.
        mask_BT: Bool, true at the actions that take part.
        cut_B: Bool: the completion ended at the limit. Its value after the last action counts where settings say so.
        log_probs_BT: log π of the actions, nats.
        reduce: Sums a tensor over all processes.
    """
    values_BT = last_B = None
    if values_BU is not None:
        values_BT, last_B = values_BU[:, :-1], values_BU[:, -1] * (cut_B & args.bootstraps)
    advantages_BT, returns_BT = args.estimator.function(
        rewards_BT=rewards_BT, values_BT=values_BT, mask_BT=mask_BT, gamma=args.gamma, lam=args.lam,
        last_values_B=last_B, group_size=args.samples_per_prompt, log_probs_BT=log_probs_BT,
    )  # fmt: skip
    if args.whiten_advantages and not args.estimator.every_action:  # rows that were not drawn have another mean
        advantages_BT = whiten(advantages_BT, mask_BT, reduce=reduce)
    return advantages_BT, returns_BT


def prompt_numbers(*, rollout: int, count: int, prompts: int, seed: int) -> list[int]:
    """Which prompts a rollout completes: the next of an endless stream of shuffled passes.

    Args:
        rollout: Its number, from 0.
        count: Prompts a rollout.
        prompts: Prompts there are.
        seed: Of the shuffling.
    """
    numbers: list[int] = []
    for place in range(rollout * count, (rollout + 1) * count):
        number, offset = divmod(place, prompts)
        if not numbers or offset == 0:
            generator = torch.Generator().manual_seed(row_seed(seed, "prompts", number))
            order = torch.randperm(prompts, generator=generator).tolist()
        numbers.append(order[offset])
    return numbers


def padded(rows: Sequence[Sequence[float]], width: int) -> torch.Tensor:
    """Rows of numbers as [B, width], float32, zeros behind."""
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float32)
