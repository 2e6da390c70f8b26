"""The environment of a dialogue with a customer: ask back, answer with a class, or hand over to a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlhf.envs.rows import Info, Observation, RowEnv, Rows, distinct, vectors
from rlhf.errors import UserError
from rlhf.rewards import RewardFunction


class DialogueEnv(RowEnv):
    """A customer's question, of which little is known at first: ask back, answer with a class, or hand over.

    Actions 0 to C - 1 answer, C (`ask`) asks back, C + 1 (`hand_over`) leaves the customer to a person. Each question
    moves on to the next stage of the rows; after the last stage it costs and reveals nothing. Observed are the
    features of what is known and, last, the share of `max_turns` that is used up. A dialogue that is not decided after
    `max_turns` actions is handed over; it is both truncated and terminated.

    Args:
        rows: Texts with features, or vectors, with R stages.
        labels: Names of the C classes, by action.
        reward: Called with the class's name when the agent answers.
        ask_cost: Subtracted for each question, in units of the reward.
        handover_cost: Subtracted for handing over.
        max_turns: Most actions of a dialogue; None for R, which is every useful question and a decision.
    """

    def __init__(
        self,
        rows: Rows,
        labels: Sequence[str],
        reward: RewardFunction,
        ask_cost: float = 0.1,
        handover_cost: float = 0.5,
        max_turns: int | None = None,
    ) -> None:
        super().__init__(rows, reward)
        self.labels, self.ask_cost, self.handover_cost = distinct(labels), ask_cost, handover_cost
        _, self._stages, size = rows.vectors_NRD.shape
        self.max_turns = self._stages if max_turns is None else max_turns
        if self.max_turns < 1:
            raise UserError(f"max_turns: expected at least 1, not {max_turns}")
        self.ask, self.hand_over, self.turns = len(self.labels), len(self.labels) + 1, 0
        self.action_space = spaces.Discrete(len(self.labels) + 2)
        self.observation_space = vectors(size + 1)

    def _begin(self) -> None:
        self.turns = 0

    def _observation(self) -> Observation:
        stage = min(self.turns, self._stages - 1)
        used = np.float32(self.turns / self.max_turns)
        return np.append(self.rows.vectors_NRD[self.row, stage], used)

    def _act(self, action: int) -> tuple[float, bool, bool, Info]:
        if action < self.ask:
            name = self.labels[action]
            return self.rows.score(self.reward, self.row, name), True, False, {"completion": name}
        if action == self.hand_over:
            return -self.handover_cost, True, False, {}
        self.turns += 1
        if self.turns == self.max_turns:
            return -self.ask_cost - self.handover_cost, True, True, {}
        return -self.ask_cost, False, False, {}


class Tabular(gymnasium.ObservationWrapper[Any, Any, Observation], gymnasium.utils.RecordConstructorArgs):
    """A dialogue whose features are probabilities, as one of few states, for Q-learning and SARSA.

    A state is the number of questions asked, the most probable of D classes, and the bin of its probability.

    Args:
        env: A dialogue whose features are probabilities of a classifier, within or without wrappers.
        edges: Growing bounds of the bins of probability, E of them.

    Raises:
        UserError: The environment is no dialogue, or its features are no probabilities.
    """

    def __init__(self, env: gymnasium.Env[Observation, Any], edges: Sequence[float] = (0.3, 0.5, 0.7, 0.9)) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, edges=tuple(edges))  # so that `spec` can make it again
        gymnasium.ObservationWrapper.__init__(self, env)
        dialogue = env.unwrapped
        if not isinstance(dialogue, DialogueEnv):
            raise UserError(f"Tabular: expected a DialogueEnv, not {type(dialogue).__name__}")
        known_NRD = dialogue.rows.vectors_NRD
        if known_NRD.min() < 0 or known_NRD.max() > 1:
            raise UserError("Tabular: the features are no probabilities; pass a classifier's as features=")
        self.edges, self.max_turns, self.classes = np.asarray(edges), dialogue.max_turns, known_NRD.shape[-1]
        self.observation_space = spaces.Discrete((self.max_turns + 1) * self.classes * (len(edges) + 1))

    def observation(self, observation: Observation) -> Any:
        """The number of the state, ((turns * D) + class) * (E + 1) + bin."""
        probability_D, turns = observation[:-1], round(float(observation[-1]) * self.max_turns)
        likely = int(probability_D.argmax())
        in_bin = int(np.digitize(probability_D[likely], self.edges))
        return np.int64((turns * self.classes + likely) * (len(self.edges) + 1) + in_bin)
