"""Gymnasium and Stable-Baselines3 take the environments as their own."""

import re
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_checker import check_env as check_for_sb3
from stable_baselines3.common.env_util import make_vec_env

from rlhf.envs import Rows, Tabular, TextEnv
from tests.envs.conftest import LABELS, right


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small take ten times as long on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments(name, rows, tokenizer):
    if name == "Text":
        reward = lambda prompts, completions, **columns: [float("a" in text) for text in completions]  # noqa: E731
        return {"rows": Rows([{"prompt": "Hello"}]), "tokenizer": tokenizer, "reward": reward, "max_new_tokens": 3}
    return {"rows": rows, "labels": LABELS, "reward": right}


@pytest.mark.parametrize("name", ["Label", "Text", "Dialogue"])
def test_environments_pass_the_checks_and_vectorise(name, stages, tiny_tokenizer):
    given = arguments(name, stages, tiny_tokenizer)
    env = gymnasium.make(f"rlhf/{name}-v0", **given)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    about = [str(warning.message) for warning in said if "infinity" not in str(warning.message)]
    assert not [message for message in about if "gymnasium.make" not in message and "`env.spec`" not in message]
    check_for_sb3(env)
    vector = gymnasium.make_vec(f"rlhf/{name}-v0", num_envs=3, vectorization_mode="sync", **given)
    seen, _ = vector.reset(seed=0)
    assert seen.shape == (3, *env.observation_space.shape)
    assert (vector.reset(seed=0)[0] == seen).all()
    assert len(vector.step(vector.action_space.sample())[1]) == 3
    assert all(one.unwrapped.rows is given["rows"] for one in vector.envs)


def test_the_few_states_pass_the_checks():
    rows = Rows([{"prompt": [0.2, 0.8], "label": "card"}, {"prompt": [0.9, 0.1], "label": "card"}], shown=(0, None))
    env = Tabular(gymnasium.make("rlhf/Dialogue-v0", rows=rows, labels=LABELS, reward=right))
    with pytest.warns(UserWarning, match="is different from the unwrapped"):
        check_env(env, skip_render_check=True)


def mean_reward(model, rows, labels):
    env = gymnasium.make("rlhf/Label-v0", rows=rows, labels=labels, reward=right)
    total = 0.0
    for number in range(len(rows)):
        seen, _ = env.reset(options={"row": number})
        total += env.step(model.predict(seen, deterministic=True)[0])[1]
    return total / len(rows)


@pytest.mark.parametrize(
    ("algorithm", "steps", "options"),
    [
        (PPO, 512, {"n_steps": 32, "batch_size": 32, "learning_rate": 3e-3}),
        (A2C, 1200, {"learning_rate": 3e-3}),
        (DQN, 1000, {"learning_starts": 50, "exploration_fraction": 0.5, "target_update_interval": 100,
                     "learning_rate": 3e-3, "train_freq": 1}),
    ],
)  # fmt: skip
def test_stable_baselines_learns_the_classes_and_logs(algorithm, steps, options, rows, tmp_path):
    given = {"rows": rows, "labels": LABELS, "reward": right}
    env = make_vec_env("rlhf/Label-v0", n_envs=4 if algorithm is not DQN else 1, seed=0, env_kwargs=given)
    model = algorithm(
        "MlpPolicy", env, gamma=1.0, seed=0, device="cpu", tensorboard_log=str(tmp_path),
        policy_kwargs={"net_arch": [16]}, **options,
    )  # fmt: skip
    model.learn(steps, log_interval=1)
    assert mean_reward(model, rows, LABELS) == 1.0
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_stable_baselines_learns_to_write_a_token(tiny_tokenizer):
    """Tokens are few here: the environment is the same with the actions of a whole vocabulary."""
    wanted = tiny_tokenizer("a")["input_ids"][0]

    def reward(prompts, completions, **columns):
        return [completion.count("a") / 3 for completion in completions]

    class Few(gymnasium.ActionWrapper):
        """Three of the tokens."""

        def __init__(self, env):
            super().__init__(env)
            self.action_space = gymnasium.spaces.Discrete(3)

        def action(self, action):
            return [wanted, tiny_tokenizer("b")["input_ids"][0], tiny_tokenizer.eos_token_id][action]

    env = Few(TextEnv(Rows([{"prompt": "H"}], lambda text: [len(text)]), tiny_tokenizer, reward, 3, shaped=True))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=32, learning_rate=5e-3, gamma=1.0, seed=0, device="cpu")
    model.learn(1280)
    seen, over = env.reset(seed=0)[0], False
    while not over:
        seen, _, over, _, info = env.step(int(model.predict(seen, deterministic=True)[0]))
    assert info["completion"] == "aaa"


def test_the_examples_of_the_page_run(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (root / "docs/envs.md").read_text(encoding="utf-8")
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)), {})
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_a_saved_agent_acts_the_same(rows, tmp_path):
    env = gymnasium.make("rlhf/Label-v0", rows=rows, labels=LABELS, reward=right)
    model = DQN("MlpPolicy", env, learning_starts=10, seed=0, device="cpu")
    model.learn(40)
    model.save(tmp_path / "agent")
    again = DQN.load(tmp_path / "agent", device="cpu")
    seen = rows.vectors_NRD[:, -1]
    assert np.array_equal(model.predict(seen, deterministic=True)[0], again.predict(seen, deterministic=True)[0])
