"""Customer service: DQN, Q-learning and SARSA learn when to ask back, answer or hand over.

    OMP_NUM_THREADS=1 python examples/customer_service/train.py --data FOLDER [--budget small] [--logs FOLDER]

It needs `pip install 'rlhf-pipeline[envs]' scikit-learn`, and banking77 (Casanueva et al., "Efficient Intent Detection
with Dual Sentence Encoders", 2020) as FOLDER/train.csv.gz and FOLDER/test.csv.

A customer of a bank writes, and three words of it are known at first; a question reveals three more, a second one the
rest. Each turn the agent asks, answers with one of ten intents, or hands over to a person. A question costs 0.1, a
person 0.5, a wrong answer 1, and 5 if it overlooks a lost or compromised card (costs.yaml). What is observed are the
probabilities of a classifier: logistic regression on words and pairs of words. The rules act on the same probabilities:

* answer at once: the most probable intent, without a question;
* tuned rule: answer above one probability, else ask, else hand over below another; both tuned on the customers that the
  agents learn from;
* cost rule: answer with the least expected cost, for which it is told the costs; ask above a tuned one, hand over where
  that costs less.

939 customers to learn from, 618 held out, whose returns are below. Intervals are of the mean difference over customers,
paired; an agent's return is the mean of three training seeds. "Where learned" is on the customers to learn from.

                          less tuned rule          less cost rule           less tuned rule
                   return [95%]                    [95%]                    where learned            asked handed right
    answer at once -0.654 -0.336 [-0.418, -0.256]  -0.320 [-0.407, -0.237]  -0.470 [-0.547, -0.397]   0.00     0%   57%
    tuned rule     -0.318                          +0.016 [-0.018, +0.043]                            1.38     6%   89%
    cost rule      -0.333 -0.016 [-0.043, +0.018]                           +0.010 [-0.022, +0.046]   1.33    17%   89%
    Q-learning     -0.345 -0.027 [-0.064, +0.015]  -0.012 [-0.053, +0.031]  +0.024 [-0.012, +0.063]   1.39    24%   91%
    SARSA          -0.384 -0.066 [-0.107, -0.017]  -0.050 [-0.083, -0.012]  -0.018 [-0.059, +0.026]   0.87    53%   93%
    DQN            -0.325 -0.007 [-0.043, +0.033]  +0.008 [-0.018, +0.036]  +0.029 [-0.002, +0.063]   1.09    11%   85%
    Q-learning, by seed: -0.346, -0.341, -0.349
    SARSA, by seed: -0.381, -0.375, -0.395
    DQN, by seed: -0.329, -0.316, -0.330

1 min 25 s of one core. The agents cost 41 to 50% less than answering at once. Beside the tuned rule, DQN and Q-learning
show no difference, and SARSA loses. The intervals say nothing about other training seeds.

* For DQN the reason seems to be that ten probabilities hold little more than two thresholds get out of them: the cost
  rule is told what the agents have to learn, and is no better than the tuned rule either. What DQN gains where it
  learned (no difference by the interval) does not carry over.
* SARSA's values count its own exploration while it learns. A random answer costs 1.30 on average, and a customer who is
  asked gives more occasions for it than one who is handed over at once. With seed 0 and ε from 1, 0.3, 0.2, 0.1, 0.05
  and 0.02 at first, it ends up asking 0.00, 0.14, 0.12, 0.58, 0.50 and 0.90 questions a customer. Q-learning, whose
  values leave exploration out, asks 1.25 to 1.56 with all of them.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from stable_baselines3 import DQN

from rlhf.envs import DialogueEnv, Rows, Tabular
from rlhf.evaluation.stats import bootstrap_ci
from rlhf.rewards.cost_matrix import cost_matrix, read_cost_matrix

Floats = NDArray[np.float64]
Policy = Callable[[NDArray[np.float32]], int]
"""What is observed (C probabilities, and the share of turns that is used up) to an action."""
Customer = dict[str, str]

COSTS = Path(__file__).with_name("costs.yaml")
SHOWN = (3, 6, None)
"""Words known at first, after one question, after two."""
ASK, HAND_OVER = 0.1, 0.5
"""What they cost, in units of a plain mistake."""
EXPLORATION = {"Q-learning": 0.3, "SARSA": 0.02}
"""ε at first; the best of 0.02, 0.05, 0.1, 0.2, 0.3 and 1 by seed 0's return on the customers to learn from."""
HELD_OUT = 0.3
"""Share of the training file that nothing learns from; it is measured on, beside the test file."""
SEEDS = (0, 1, 2)
FOLDS = 5


class Budget(NamedTuple):
    """How long is learned."""

    episodes: int
    """Of a table."""
    steps: int
    """Of DQN."""
    grid: int
    """Values tried for each threshold of a rule."""


BUDGETS = {"full": Budget(100_000, 60_000, 12), "small": Budget(500, 300, 3)}


def customers(data: Path, classes: Sequence[str]) -> tuple[list[Customer], list[Customer]]:
    """Customers with one of these intents: those to learn from, and those held out."""
    tables = []
    for path, opener in ((data / "train.csv.gz", gzip.open), (data / "test.csv", open)):
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            rows = [{"prompt": row["text"], "label": row["category"]} for row in csv.DictReader(file)]
        tables.append([row for row in rows if row["label"] in classes])
    labels = [row["label"] for row in tables[0]]
    learned, kept = train_test_split(tables[0], test_size=HELD_OUT, random_state=0, stratify=labels)
    return learned, kept + tables[1]


def known(rows: Sequence[Customer]) -> list[list[str]]:
    """What is known of each customer at each stage: N lists of R texts."""
    return [[" ".join(row["prompt"].split()[:size]) for size in SHOWN] for row in rows]


def classifier(rows: Sequence[Customer]) -> Pipeline:
    """Logistic regression on words and pairs of words, fitted to what is known of customers at every stage."""
    texts = [text for stages in known(rows) for text in stages]
    labels = [row["label"] for row in rows for _ in SHOWN]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(vectors, LogisticRegression(C=10.0, max_iter=1000)).fit(texts, labels)


def probabilities(model: Pipeline, rows: Sequence[Customer]) -> Floats:
    """The classifier's probabilities of each customer at each stage, of shape (N, R, C)."""
    return np.stack([model.predict_proba(stages) for stages in known(rows)])


def unseen_probabilities(rows: Sequence[Customer]) -> Floats:
    """The same of the customers to learn from, each by a classifier that was fitted to the others.

    A classifier is surer of the texts it was fitted to; what learns from those probabilities would trust it too much.
    """
    labels = [row["label"] for row in rows]
    result_NRC = np.empty((len(rows), len(SHOWN), len(set(labels))))
    for fitted, left in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels):
        result_NRC[left] = probabilities(classifier([rows[i] for i in fitted]), [rows[i] for i in left])
    return result_NRC


def dialogue(rows: Sequence[Customer], probabilities_NRC: Floats, classes: Sequence[str]) -> DialogueEnv:
    """The environment: what a customer costs is what the reward takes off."""
    reward = functools.partial(cost_matrix, matrix=COSTS)
    return DialogueEnv(Rows(rows, probabilities_NRC), classes, reward, ASK, HAND_OVER)


class Played(NamedTuple):
    """What became of N customers."""

    returns_N: Floats
    asked_N: Floats
    """Questions."""
    handed_N: Floats
    """1 where a person took over."""
    right_N: Floats
    """1 where the answer was right."""


def play(env: DialogueEnv, policy: Policy) -> Played:
    """Serve each customer once."""
    results = []
    for row in range(len(env.rows)):
        (observation, _), total, asked, over = env.reset(options={"row": row}), 0.0, 0, False
        while not over:
            action = policy(observation)
            observation, reward, over, _, info = env.step(action)
            total, asked = total + reward, asked + (action == env.ask)
        answer = info.get("completion")
        results.append((total, asked, answer is None, answer == env.rows.columns[row]["label"]))
    return Played(*np.array(results, dtype=np.float64).T)


def may_ask(env: DialogueEnv, observation: NDArray[np.float32]) -> bool:
    """Whether a question would still reveal something."""
    return round(float(observation[-1]) * env.max_turns) < env.max_turns - 1


def at_once(env: DialogueEnv, observation: NDArray[np.float32]) -> int:
    """The rule that answers with the most probable class."""
    return int(observation[:-1].argmax())


def by_confidence(env: DialogueEnv, sure: float, unsure: float, observation: NDArray[np.float32]) -> int:
    """The rule that answers above one probability, asks while it may, and hands over below another."""
    highest = observation[:-1].max()
    if highest < sure and may_ask(env, observation):
        return env.ask
    return env.hand_over if highest < unsure else int(observation[:-1].argmax())


def by_cost(env: DialogueEnv, costs_CC: Floats, cheap: float, observation: NDArray[np.float32]) -> int:
    """The rule that knows the costs: it answers with the least expected cost, or asks, or hands over."""
    expected_C = observation[:-1] @ costs_CC
    if expected_C.min() > cheap and may_ask(env, observation):
        return env.ask
    return env.hand_over if expected_C.min() > HAND_OVER else int(expected_C.argmin())


def tuned(env: DialogueEnv, rules: Sequence[Policy]) -> Policy:
    """The rule with the highest mean return on the customers to learn from."""
    return max(rules, key=lambda rule: play(env, rule).returns_N.mean())


def table(env: DialogueEnv, name: str, episodes: int, seed: int) -> Policy:
    """Learn a table of Q-values, by Q-learning or SARSA.

    Both move Q(s, a) towards r + V(s'). Q-learning's V(s') is max_a' Q(s', a') (Watkins, "Learning from Delayed
    Rewards", 1989); SARSA's is Q(s', a') of the action that is taken next (Rummery and Niranjan, "On-line Q-learning
    using connectionist systems", 1994). Actions are ε-greedy with ε falling to 0, and Q is 0 at first, better than
    anything costs, so that each action is tried. The step size is n^-0.7 at the n-th visit, and at least 0.01. What was
    never tried is not done afterwards, but for handing over.
    """
    rng, states = np.random.default_rng(seed), Tabular(env)
    q_SA = np.zeros((states.observation_space.n, env.action_space.n))
    visits_SA = np.zeros_like(q_SA)

    def act(state: int, epsilon: float) -> int:
        return int(rng.integers(env.action_space.n) if rng.random() < epsilon else q_SA[state].argmax())

    for episode in range(episodes):
        epsilon = EXPLORATION[name] * (1 - episode / episodes)
        (state, _), over = states.reset(seed=None if episode else seed), False
        action = act(state, epsilon)
        while not over:
            after, reward, over, _, _ = states.step(action)
            following = act(after, epsilon)
            value = q_SA[after, following] if name == "SARSA" else q_SA[after].max()
            visits_SA[state, action] += 1
            step_size = max(0.01, visits_SA[state, action] ** -0.7)
            q_SA[state, action] += step_size * (reward + (not over) * value - q_SA[state, action])
            state, action = after, following
    untried_A = np.full(env.action_space.n, -np.inf)
    untried_A[env.hand_over] = -HAND_OVER
    learned_SA = np.where(visits_SA > 0, q_SA, untried_A)
    return lambda observation: int(learned_SA[states.observation(observation)].argmax())


def dqn(env: DialogueEnv, steps: int, seed: int, logs: Path | None) -> Policy:
    """Learn a network of Q-values: Stable-Baselines3's DQN (Mnih et al., 2015), ε-greedy."""
    agent = DQN(
        "MlpPolicy", env, gamma=1.0, learning_rate=1e-3, buffer_size=steps, learning_starts=min(1000, steps // 3),
        batch_size=128, train_freq=4, target_update_interval=500, exploration_fraction=0.5, seed=seed, device="cpu",
        policy_kwargs={"net_arch": [64]}, tensorboard_log=None if logs is None else str(logs),
    )  # fmt: skip
    agent.learn(steps)
    return lambda observation: int(agent.predict(observation, deterministic=True)[0])


def mean_of(played: Sequence[Played]) -> Played:
    """Each customer's mean over seeds."""
    return Played(*np.mean(played, axis=0))


def difference(results: dict[str, list[Played]], name: str, rule: str) -> str:
    """By how much a policy returns more than a rule, with a 95% interval, paired by customer."""
    if name == rule:
        return ""
    difference_N = mean_of(results[name]).returns_N - mean_of(results[rule]).returns_N
    low, high = bootstrap_ci(difference_N)
    return f"{difference_N.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def report(held_out: dict[str, list[Played]], learned: dict[str, list[Played]]) -> str:
    """The table of results on held-out customers, and one difference on those that were learned from."""
    lines = [
        f"{'':22}less tuned rule          less cost rule           less tuned rule",
        f"{'':14} return [95%]                    [95%]                    where learned            asked handed right",
    ]
    for name, seeds in held_out.items():
        mean = mean_of(seeds)
        cells = (difference(held_out, name, "tuned rule"), difference(held_out, name, "cost rule"))
        shown = "".join(f"{cell:25}" for cell in (*cells, difference(learned, name, "tuned rule")))
        answered = 1 - mean.handed_N.mean()
        right = mean.right_N.mean() / answered if answered else 0.0
        rates = f"{mean.asked_N.mean():5.2f} {mean.handed_N.mean():6.0%} {right:5.0%}"
        lines.append(f"{name:14} {mean.returns_N.mean():+.3f} {shown}{rates}")
    for name, seeds in held_out.items():
        if len(seeds) > 1:
            lines.append(f"{name}, by seed: " + ", ".join(f"{played.returns_N.mean():+.3f}" for played in seeds))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Played]]:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of banking77: train.csv.gz, test.csv")
    parser.add_argument("--budget", choices=BUDGETS, default="full")
    parser.add_argument("--logs", type=Path, help="folder for DQN's TensorBoard logs")
    options = parser.parse_args(arguments)
    for name in ("train.csv.gz", "test.csv"):
        if not (options.data / name).is_file():
            parser.error(f"{options.data / name}: no such file")
    budget = BUDGETS[options.budget]
    torch.set_num_threads(1)
    matrix = read_cost_matrix(COSTS)
    classes = sorted(matrix.classes)
    learned, kept = customers(options.data, classes)
    training = dialogue(learned, unseen_probabilities(learned), classes)
    held_out = dialogue(kept, probabilities(classifier(learned), kept), classes)
    costs_CC = np.array([[matrix.cost(right, answer) for answer in classes] for right in classes])

    sure, unsure = np.linspace(0.3, 0.98, budget.grid), np.linspace(0.0, 0.8, budget.grid)
    rules = [functools.partial(by_confidence, training, high, low) for high in sure for low in unsure if low <= high]
    cheap = np.linspace(0.0, HAND_OVER * 1.2, 2 * budget.grid)
    aware = [functools.partial(by_cost, training, costs_CC, most) for most in cheap]
    policies: dict[str, list[Policy]] = {
        "answer at once": [functools.partial(at_once, training)],
        "tuned rule": [tuned(training, rules)],
        "cost rule": [tuned(training, aware)],
        **{name: [table(training, name, budget.episodes, seed) for seed in SEEDS] for name in EXPLORATION},
        "DQN": [dqn(training, budget.steps, seed, options.logs) for seed in SEEDS],
    }
    print(f"{len(learned)} customers to learn from, {len(kept)} held out")
    on_kept = {name: [play(held_out, policy) for policy in made] for name, made in policies.items()}
    on_learned = {name: [play(training, policy) for policy in made] for name, made in policies.items()}
    print(report(on_kept, on_learned))
    return on_kept


if __name__ == "__main__":
    main()
