import functools

import gymnasium
import numpy as np
import pytest
import torch

from examples.mountain_car.train import (
    DEMONSTRATION_NOISE,
    HORIZON,
    LearnedReward,
    RewardedEnvs,
    baseline_accuracy,
    compare,
    expert,
    main,
    make_env,
    rollouts,
)
from rlhf.objectives.losses import bradley_terry_loss


@pytest.fixture(scope="module")
def trajectories():
    return rollouts(functools.partial(expert, np.random.default_rng(0), DEMONSTRATION_NOISE), range(12))


def test_it_runs_and_the_learned_reward_is_above_chance(capsys):
    (outcome,) = main(["--budget", "small", "--seeds", "0"])
    assert outcome.accuracy > 0.7
    for returns in (*outcome.cloned.values(), *outcome.trained.values()):
        assert returns.shape == (20,)
        assert (returns >= -HORIZON).all()
        assert (returns < -60).all()  # nobody gets there sooner
    assert capsys.readouterr().out.count("[") == 1 + 4  # the head, and both ways of acting by seed and in all


def test_an_episode_s_rewards_are_those_of_the_plain_environment():
    returns = rollouts(functools.partial(expert, np.random.default_rng(0), 0.0), range(5)).rewards.sum(1)
    plain = gymnasium.make("MountainCar-v0")
    for seed, expected in enumerate(returns):
        (_, velocity), _ = plain.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            (_, velocity), reward, terminated, truncated, _ = plain.step(2 if velocity >= 0 else 0)
            total, ended = total + reward, terminated or truncated
        assert total == expected
    assert (returns > -HORIZON).all()


def test_the_car_stays_at_the_flag_until_the_time_is_up(trajectories):
    arrived = np.flatnonzero(trajectories.rewards[:, -1] == 0)
    assert 0 < len(arrived) < 12
    for episode in arrived:
        first = int(-trajectories.rewards[episode].sum())  # the step that reaches the flag costs as any other
        assert (trajectories.observations[episode, first:] == trajectories.observations[episode, first]).all()
        assert (trajectories.rewards[episode, first:] == 0).all()


def steps_at_the_flag(pieces_MT2):
    return (pieces_MT2[..., 0] >= (0.5 + 1.2) / 1.8 * 2 - 1).sum(-1)


def test_the_teacher_prefers_the_higher_true_return_but_for_the_noise(trajectories):
    chosen, rejected = (
        steps_at_the_flag(pieces) for pieces in compare(trajectories, 500, 30, 0.0, np.random.default_rng(1))
    )
    assert (chosen >= rejected).all()  # the step that arrives is at the flag and still costs: equal is one apart
    chosen, rejected = (
        steps_at_the_flag(pieces) for pieces in compare(trajectories, 500, 30, 0.2, np.random.default_rng(1))
    )
    assert 0.15 < (chosen < rejected).double().mean() < 0.25


def test_a_learned_reward_prefers_what_was_chosen(trajectories):
    torch.manual_seed(0)
    comparisons, reward = compare(trajectories, 100, 30, 0.0, np.random.default_rng(2)), LearnedReward()

    def loss():
        with torch.no_grad():
            return bradley_terry_loss(*(reward(pieces).sum(-1) for pieces in comparisons)).item()

    before = loss()
    reward.fit(comparisons, 20)
    assert loss() < before
    assert reward.accuracy(comparisons) > 0.9
    assert baseline_accuracy(comparisons) > 0.9
    with torch.no_grad():
        rewards = reward(torch.cat(comparisons))
    assert (rewards.mean().item(), rewards.std().item()) == pytest.approx((0, 1), abs=1e-4)


def test_the_environments_give_the_learned_reward_of_the_state_reached():
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.manual_seed(0)
    reward = LearnedReward()
    envs = RewardedEnvs(DummyVecEnv([make_env] * 2), reward)
    envs.seed(0)
    envs.reset()
    for step in range(1, HORIZON + 1):
        observations, rewards, done, infos = envs.step(np.array([0, 2]))
        assert done.tolist() == [step == HORIZON] * 2
        reached = np.stack([info["terminal_observation"] for info in infos]) if done.any() else observations
        with torch.no_grad():
            np.testing.assert_allclose(rewards, reward(torch.as_tensor(reached)).numpy(), rtol=1e-6)
    assert not np.allclose(observations, reached)
