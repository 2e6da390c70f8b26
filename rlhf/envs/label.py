"""The environment of a classifier: one step, whose action is a class."""

from __future__ import annotations

from collections.abc import Sequence

from gymnasium import spaces

from rlhf.envs.rows import Info, Observation, RowEnv, Rows, distinct, vectors
from rlhf.rewards import RewardFunction


class LabelEnv(RowEnv):
    """One step: the action is a class, and the reward is the reward function's on the class's name.

    Args:
        rows: Texts with features, or vectors; all of a row is observed.
        labels: Names of the C classes, by action.
        reward: Called with the class's name as completion.
    """

    def __init__(self, rows: Rows, labels: Sequence[str], reward: RewardFunction) -> None:
        super().__init__(rows, reward)
        self.labels = distinct(labels)
        self.action_space = spaces.Discrete(len(self.labels))
        self.observation_space = vectors(rows.vectors_NRD.shape[-1])

    def _observation(self) -> Observation:
        return self.rows.vectors_NRD[self.row, -1].copy()

    def _act(self, action: int) -> tuple[float, bool, bool, Info]:
        name = self.labels[action]
        return self.rows.score(self.reward, self.row, name), True, False, {"completion": name}
