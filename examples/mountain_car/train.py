"""MountainCar: behaviour cloning, a reward learned from comparisons of trajectory pieces, and PPO on that reward.

    OMP_NUM_THREADS=1 python examples/mountain_car/train.py [--budget small] [--seeds 0 1 2]

It needs `pip install 'rlhf-pipeline[envs]'`. The steps, each from the training seed alone:

1. A policy (Stable-Baselines3's MlpPolicy) is cloned from four demonstrations: a scripted expert pumps energy, but 40%
   of its actions are random.
2. 600 pairs of pieces of 50 steps, by the cloned policy, the noisy expert and random actions, get a label from a
   synthetic teacher who sees the true return of each piece; 10% of the labels are flipped. A reward of the state is
   learned from them with the Bradley-Terry loss, which is the reward stage's, as in Christiano et al., "Deep
   Reinforcement Learning from Human Preferences" (2017).
3. PPO starts from the cloned policy and takes 320,000 steps. It is shown the learned reward only.

Both policies act from the same 100 held-out reset seeds. The intervals are of the mean difference over these; "all" is
the mean of the three training seeds. A random policy has -200, the expert without noise -120. Acting greedily, each
time with the likeliest action, already takes much of the noise out of the cloned policy.

    learned reward right on held-out pairs        99.9%, 99.2%, 99.9%  (of other trajectories, labels without noise)
    "the piece that ends farther right" is right  98.0%, 98.0%, 99.1%

    true return       cloned     PPO  difference  [95% interval]
    greedy, seed 0    -137.5  -111.5       +26.0  [+20.2, +31.6]
    greedy, seed 1    -125.2  -124.5        +0.7  [-6.7, +8.5]
    greedy, seed 2    -119.6  -116.6        +3.0  [+2.7, +3.4]
    greedy, all       -127.5  -117.5        +9.9  [+8.3, +11.7]
    sampled, seed 0   -177.3  -115.0       +62.2  [+57.0, +67.2]
    sampled, seed 1   -184.7  -118.6       +66.2  [+61.2, +70.8]
    sampled, seed 2   -193.6  -112.8       +80.8  [+78.0, +83.4]
    sampled, all      -185.2  -115.5       +69.7  [+66.9, +72.5]

1 min 40 s of one core. These intervals say nothing about other training seeds. Student's interval of the three
differences is [+45, +94] sampled, and [-25, +45] greedy: the greedy gain differs too much between training seeds to
promise one for the next.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control import MountainCarEnv
from gymnasium.wrappers import RescaleObservation, TimeLimit
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from torch import nn

from rlhf.evaluation.stats import bootstrap_ci
from rlhf.objectives.losses import bradley_terry_loss

HORIZON = 200
"""Steps of MountainCar-v0 before its time is up."""
LEFT, RIGHT, ACTIONS = 0, 2, 3
DEMONSTRATION_NOISE = 0.4
"""Share of the expert's actions that are random instead."""
LABEL_NOISE = 0.1
"""Share of the teacher's labels that are flipped."""
COLLECT, COMPARE, HOLD_OUT, MEASURE = (number * 10**9 for number in range(1, 5))
"""First reset seed of each purpose. Training seed s has those from 1,000 s on; what measures is the same for all."""

Array = NDArray[Any]
Act = Callable[[Array], Array]
"""Actions [N] for observations [N, 2]."""


@dataclass(frozen=True)
class Budget:
    """How much of everything."""

    demonstrations: int = 4
    cloning_steps: int = 500
    trajectories: int = 20
    """By each of the three policies whose pieces are compared."""
    piece: int = 50
    """Steps of a piece."""
    comparisons: int = 600
    held_out: int = 1000
    """Comparisons without label noise, of other trajectories, on which the learned reward is measured."""
    reward_epochs: int = 60
    environments: int = 16
    """In which PPO acts side by side."""
    ppo_steps: int = 320_000
    episodes: int = 100
    """On which a policy is measured."""


BUDGETS = {
    "full": Budget(),
    "small": Budget(comparisons=200, held_out=200, reward_epochs=30, environments=4, ppo_steps=3_200, episodes=20),
}


class StayAtFlag(gymnasium.Wrapper):
    """The car stays at the flag once it is there, instead of the episode's end.

    Bradley-Terry scores have no zero, so whether an early end is good would depend on an arbitrary constant; and the
    end would tell PPO about the true reward (Christiano et al. 2017, appendix A). The rewards of a whole episode still
    add up to the return of MountainCar-v0.
    """

    def reset(self, **options: Any) -> Any:
        """Start an episode."""
        self.arrived: Array | None = None
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        """One step, which changes nothing and costs nothing at the flag."""
        if self.arrived is not None:
            return self.arrived, 0.0, False, False, {}
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated:
            self.arrived = observation
        return observation, reward, False, truncated, info


def make_env() -> gymnasium.Env:
    """MountainCar-v0 with `StayAtFlag`; position and velocity are scaled to [-1, 1]."""
    return RescaleObservation(TimeLimit(StayAtFlag(MountainCarEnv()), HORIZON), np.float32(-1), np.float32(1))


class Trajectories(NamedTuple):
    """N whole episodes."""

    observations: Array
    """[N, HORIZON + 1, 2]."""
    actions: Array
    """[N, HORIZON]."""
    rewards: Array
    """True rewards, [N, HORIZON]: -1 a step, 0 at the flag."""


def rollouts(act: Act, seeds: range) -> Trajectories:
    """One episode for each reset seed."""
    envs = gymnasium.vector.SyncVectorEnv([make_env] * len(seeds))
    observation, _ = envs.reset(seed=list(seeds))
    observations, actions, rewards = [observation], [], []
    for _ in range(HORIZON):
        action = act(observation)
        observation, reward, *_ = envs.step(action)
        for values, value in zip((observations, actions, rewards), (observation, action, reward), strict=True):
            values.append(value)
    return Trajectories(np.stack(observations, 1), np.stack(actions, 1), np.stack(rewards, 1))


def expert(random: np.random.Generator, noise: float, observations_N2: Array) -> Array:
    """Pump energy: accelerate in the direction of motion, but for a share of random actions."""
    pump_N = np.where(observations_N2[:, 1] >= 0, RIGHT, LEFT)
    return np.where(random.random(len(pump_N)) < noise, random.integers(ACTIONS, size=len(pump_N)), pump_N)


def actor(policy: ActorCriticPolicy, greedy: bool) -> Act:
    """The policy's likeliest actions, or sampled ones."""
    return lambda observations_N2: policy.predict(observations_N2, deterministic=greedy)[0]


def clone(policy: ActorCriticPolicy, demonstrations: Trajectories, steps: int) -> None:
    """Behaviour cloning: cross-entropy of the actions that were taken before the flag."""
    on_the_way = demonstrations.rewards < 0
    observations = torch.as_tensor(demonstrations.observations[:, :-1][on_the_way])
    actions = torch.as_tensor(demonstrations.actions[on_the_way])
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = torch.randint(len(actions), (64,))
        _, log_probs, _ = policy.evaluate_actions(observations[batch], actions[batch])
        optimizer.zero_grad()
        (-log_probs.mean()).backward()
        optimizer.step()


class Comparisons(NamedTuple):
    """M pairs of pieces of T steps: the observations after each step."""

    chosen: torch.Tensor
    """[M, T, 2]."""
    rejected: torch.Tensor
    """[M, T, 2]."""


def compare(
    trajectories: Trajectories, count: int, length: int, noise: float, random: np.random.Generator
) -> Comparisons:
    """Random pairs of pieces, with the labels of a synthetic teacher who sees the true return of each piece.

    The teacher prefers the piece with fewer steps before the flag. A pair that it cannot tell apart gets no label
    (Christiano et al. 2017, sections 2.2.2 and 3.1); that is most pairs, since few pieces reach the flag.

    Args:
        trajectories: What pieces are cut from.
        count: Pairs with a label.
        length: Steps of a piece.
        noise: Share of labels that are flipped.
        random: Decides which pieces, which labels.
    """
    starts = HORIZON + 1 - length
    returns = np.lib.stride_tricks.sliding_window_view(trajectories.rewards, length, axis=1).sum(-1).ravel()
    pairs_M2 = np.empty((0, 2), dtype=np.int64)
    while len(pairs_M2) < count:
        drawn = random.integers(len(returns), size=(10 * count, 2))
        pairs_M2 = np.concatenate([pairs_M2, drawn[returns[drawn[:, 0]] != returns[drawn[:, 1]]]])
    pairs_M2 = pairs_M2[:count]
    first = (returns[pairs_M2[:, 0]] > returns[pairs_M2[:, 1]]) ^ (random.random(count) < noise)
    pairs_M2 = np.where(first[:, None], pairs_M2, pairs_M2[:, ::-1])
    rows, begin = np.divmod(pairs_M2, starts)
    pieces = trajectories.observations[rows[..., None], begin[..., None] + 1 + np.arange(length)]
    return Comparisons(*torch.as_tensor(pieces).unbind(1))


class LearnedReward(nn.Module):
    """A reward of the state that a step leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.mean, self.deviation = 0.0, 1.0

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Rewards [...] of observations [..., 2]."""
        return (self.layers(observations).squeeze(-1) - self.mean) / self.deviation

    def fit(self, comparisons: Comparisons, epochs: int) -> None:
        """Minimise the Bradley-Terry loss of the pieces' summed rewards, then normalise (section 2.2.1)."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(comparisons.chosen)).split(64):
                chosen_B, rejected_B = (self(pieces[batch]).sum(-1) for pieces in comparisons)
                optimizer.zero_grad()
                bradley_terry_loss(chosen_B, rejected_B).backward()
                optimizer.step()
        with torch.no_grad():
            rewards = self.layers(torch.cat(comparisons))
        self.mean, self.deviation = float(rewards.mean()), float(rewards.std())

    @torch.no_grad()
    def accuracy(self, comparisons: Comparisons) -> float:
        """Share of pairs whose chosen piece has the higher sum."""
        chosen_M, rejected_M = (self(pieces).sum(-1) for pieces in comparisons)
        return float((chosen_M > rejected_M).double().mean())


def baseline_accuracy(comparisons: Comparisons) -> float:
    """Share of pairs whose chosen piece ends farther right, equal ends counting half."""
    chosen_M, rejected_M = (pieces[:, -1, 0] for pieces in comparisons)
    return float((chosen_M > rejected_M).double().mean() + (chosen_M == rejected_M).double().mean() / 2)


class RewardedEnvs(VecEnvWrapper):
    """Environments that give the learned reward and keep the true one to themselves."""

    def __init__(self, envs: DummyVecEnv, reward: LearnedReward) -> None:
        super().__init__(envs)
        self.reward = reward

    def reset(self) -> Any:
        """Start all episodes."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """The step's outcome; at an episode's end the reward is that of its last state, not of the next's first."""
        observations_N2, _, done_N, infos = self.venv.step_wait()
        reached_N2 = observations_N2.copy()
        for index in np.flatnonzero(done_N):
            reached_N2[index] = infos[index]["terminal_observation"]
        with torch.no_grad():
            rewards_N = self.reward(torch.as_tensor(reached_N2)).numpy()
        return observations_N2, rewards_N, done_N, infos


class Outcome(NamedTuple):
    """What one training seed gave; returns are true ones, an array by reset seed."""

    demonstrations: float
    """Their mean return."""
    accuracy: float
    """Of the learned reward on held-out comparisons."""
    baseline: float
    """Accuracy of "the piece that ends farther right" on them."""
    cloned: dict[str, Array]
    """Returns after behaviour cloning by way of acting: greedy, sampled."""
    trained: dict[str, Array]
    """Returns after PPO."""


def measure(policy: ActorCriticPolicy, episodes: int) -> dict[str, Array]:
    """True returns on reset seeds that nothing else uses."""
    seeds = range(MEASURE, MEASURE + episodes)
    return {way: rollouts(actor(policy, way == "greedy"), seeds).rewards.sum(1) for way in ("greedy", "sampled")}


def train(seed: int, budget: Budget) -> Outcome:
    """All three steps with one training seed."""
    random = np.random.default_rng(seed)
    set_random_seed(seed)

    def seeds(purpose: int, count: int) -> range:
        return range(purpose + 1000 * seed, purpose + 1000 * seed + count)

    def collect(purpose: int) -> Trajectories:
        """Trajectories by the cloned policy, by the expert with noise, and by chance."""
        actors = (actor(model.policy, greedy=False), noisy_expert, functools.partial(expert, random, 1.0))
        runs = [
            rollouts(act, seeds(purpose, len(actors) * budget.trajectories)[index :: len(actors)])
            for index, act in enumerate(actors)
        ]
        return Trajectories(*map(np.concatenate, zip(*runs, strict=True)))

    noisy_expert = functools.partial(expert, random, DEMONSTRATION_NOISE)
    reward = LearnedReward()
    model = PPO(
        "MlpPolicy", RewardedEnvs(DummyVecEnv([make_env] * budget.environments), reward), seed=seed, device="cpu",
        n_steps=HORIZON, batch_size=400, learning_rate=LinearSchedule(1e-3, 0.0, 1.0), target_kl=0.03,
    )  # fmt: skip

    demonstrations = rollouts(noisy_expert, seeds(COLLECT, budget.demonstrations))
    clone(model.policy, demonstrations, budget.cloning_steps)
    cloned = measure(model.policy, budget.episodes)

    comparisons = compare(collect(COMPARE), budget.comparisons, budget.piece, LABEL_NOISE, random)
    held_out = compare(collect(HOLD_OUT), budget.held_out, budget.piece, 0.0, random)
    reward.fit(comparisons, budget.reward_epochs)

    model.learn(budget.ppo_steps)
    return Outcome(
        float(demonstrations.rewards.sum(1).mean()), reward.accuracy(held_out), baseline_accuracy(held_out),
        cloned, measure(model.policy, budget.episodes),
    )  # fmt: skip


def row(name: str, cloned_N: Array, trained_N: Array) -> str:
    """Mean true returns and the paired difference with its interval."""
    difference_N = trained_N - cloned_N
    low, high = bootstrap_ci(difference_N)
    means = f"{cloned_N.mean():8.1f}{trained_N.mean():8.1f}{difference_N.mean():+12.1f}"
    return f"{name:<16}{means}  [{low:+.1f}, {high:+.1f}]"


def main(arguments: list[str] | None = None) -> list[Outcome]:
    """Train with each seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budget", choices=BUDGETS, default="full")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(arguments)
    outcomes = []
    for seed in args.seeds:
        outcome = train(seed, BUDGETS[args.budget])
        outcomes.append(outcome)
        print(
            f"seed {seed}: demonstrations {outcome.demonstrations:.1f}, learned reward {outcome.accuracy:.1%} right on"
            f" held-out pairs, farther right {outcome.baseline:.1%}",
            flush=True,
        )
    print(f"\n{'true return':<16}{'cloned':>8}{'PPO':>8}{'difference':>12}  [95% interval]")
    for way in ("greedy", "sampled"):
        for seed, outcome in zip(args.seeds, outcomes, strict=True):
            print(row(f"{way}, seed {seed}", outcome.cloned[way], outcome.trained[way]))
        cloned_N = np.mean([outcome.cloned[way] for outcome in outcomes], axis=0)
        print(row(f"{way}, all", cloned_N, np.mean([outcome.trained[way] for outcome in outcomes], axis=0)))
    return outcomes


if __name__ == "__main__":
    main()
