"""Rows, and the environment over rows that the others complete.

Axes: N rows, R stages of what is known of a row, D features.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from rlhf.data.records import Prompt, Text
from rlhf.errors import UserError
from rlhf.rewards import RewardFunction, columns_of

Features = Callable[[str], ArrayLike]
"""A text to a vector of D numbers."""

Observation = NDArray[Any]
Info = dict[str, Any]


class Rows:
    """Policy inputs with what is observed of them, computed once and shared by all environments made of them.

    Args:
        rows: N mappings with a `prompt` (text, messages, or a vector of D numbers) and columns for the reward function,
            or records of prompts.
        features: What is observed of a text, such as `model_features`; or an array of what is observed of each row, of
            shape (N, D), or (N, R, D) for R stages. None: prompts are vectors, or tokens are observed.
        shown: R growing numbers: how much of a prompt is known at each stage, in words of a text or in leading entries
            of a vector, the others being 0; None is all of it. Not for an array of features.

    Raises:
        UserError: A row has no prompt, the stages do not grow, or the array does not fit the rows.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any] | Prompt],
        features: Features | ArrayLike | None = None,
        shown: Sequence[int | None] = (None,),
    ) -> None:
        sizes = [math.inf if size is None else size for size in shown]
        if not sizes or min(sizes) < 0 or any(after <= before for before, after in pairwise(sizes)):
            raise UserError(f"shown: expected growing numbers, None for all at the end, not {tuple(shown)}")
        if not rows:
            raise UserError("rows: there is none")
        self.prompts, self.columns = [], []
        for number, row in enumerate(rows):
            columns = {"prompt": row.prompt, **row.extra} if isinstance(row, Prompt) else dict(row)
            if columns.get("prompt") is None:
                raise UserError(f"rows: row {number} has no 'prompt': a text, messages or a vector of numbers")
            self.prompts.append(columns.pop("prompt"))
            self.columns.append(columns)
        self.features, self.shown = features if callable(features) else None, tuple(shown)
        self.given_NRD = None if features is None or callable(features) else self._given(features)

    def __len__(self) -> int:
        return len(self.prompts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rows:
        """Itself: Gymnasium copies an environment's arguments, and these are shared and never change."""
        return self

    @cached_property
    def vectors_NRD(self) -> NDArray[np.float32]:
        """What is observed of each row at each stage, float32 of shape (N, R, D).

        Raises:
            UserError: Prompts are texts and there are no features, or vectors are not of one length and finite.
        """
        if self.given_NRD is not None:
            return self.given_NRD
        vectors = [[self._vector(number, size) for size in self.shown] for number in range(len(self))]
        length = len(vectors[0][0])
        for number, stages in enumerate(vectors):
            for vector in stages:
                if vector.shape != (length,) or not np.isfinite(vector).all():
                    raise UserError(f"rows: row {number} has no vector of {length} finite numbers like row 0")
        return np.asarray(vectors, dtype=np.float32)

    def _given(self, features: ArrayLike) -> NDArray[np.float32]:
        if self.shown != (None,):
            raise UserError("shown: an array of features has its own stages, of shape (rows, stages, features)")
        given = np.asarray(features, dtype=np.float32)
        given_NRD = given[:, None] if given.ndim == 2 else given
        if given_NRD.ndim != 3 or len(given_NRD) != len(self) or not np.isfinite(given_NRD).all():
            raise UserError(f"features: expected finite numbers for {len(self)} rows, not an array of {given.shape}")
        return given_NRD

    def _vector(self, number: int, size: int | None) -> NDArray[np.float32]:
        prompt = self.prompts[number]
        if isinstance(prompt, str):
            if self.features is None:
                raise UserError("rows: prompts are texts, so pass features=, a function from a text to a vector")
            known = prompt if size is None else " ".join(prompt.split()[:size])
            return np.asarray(self.features(known), dtype=np.float32)
        try:
            vector = np.array(prompt, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.empty((0, 0), dtype=np.float32)
        if vector.ndim != 1:
            raise UserError(f"rows: row {number}: expected a prompt of text or a vector of numbers")
        if size is not None:
            vector[size:] = 0
        return vector

    def score(self, reward: RewardFunction, number: int, completion: Text) -> float:
        """What a reward function says of one completion.

        Raises:
            UserError: It does not return one finite number.
        """
        scores = list(reward([self.prompts[number]], [completion], **columns_of([self.columns[number]])))
        if len(scores) != 1 or scores[0] is None or not math.isfinite(scores[0]):
            raise UserError(f"reward: expected one finite number for row {number} and {completion!r}, not {scores}")
        return float(scores[0])


class RowEnv(gymnasium.Env[Observation, Any]):
    """What the environments share: rows come in a seeded order, each once before any comes again.

    `reset(seed=…)` starts the order anew; `reset(options={"row": number})` takes one row, for evaluation.

    Args:
        rows: The policy inputs.
        reward: `f(prompts, completions, **columns)`, TRL's convention, called with one completion.
    """

    def __init__(self, rows: Rows, reward: RewardFunction) -> None:
        self.rows, self.reward, self.row = rows, reward, 0
        self._order: list[int] = []
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Begin an episode with the next row.

        Raises:
            UserError: `options["row"]` is not the number of a row.
        """
        super().reset(seed=seed)
        if seed is not None or not self._order:
            self._order = self.np_random.permutation(len(self.rows)).tolist()
        number = (options or {}).get("row")
        if number is None:
            number = self._order.pop()
        elif number not in range(len(self.rows)):
            raise UserError(f"reset: there is no row {number}; rows are 0 to {len(self.rows) - 1}")
        self.row, self._over = int(number), False
        self._begin()
        return self._observation(), {"row": self.row}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """Act, and be rewarded.

        Raises:
            ResetNeeded: The episode is over.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset")
        reward, terminated, truncated, info = self._act(int(action))
        self._over = terminated
        return self._observation(), reward, terminated, truncated, {"row": self.row, **info}

    def _begin(self) -> None:
        """Prepare for the current row."""

    @abstractmethod
    def _observation(self) -> Observation: ...

    @abstractmethod
    def _act(self, action: int) -> tuple[float, bool, bool, Info]:
        """Reward, whether the episode is over, whether a limit ended it, and what happened."""


def distinct(labels: Sequence[str]) -> list[str]:
    """The names of classes.

    Raises:
        UserError: There are fewer than two, or two are the same.
    """
    if isinstance(labels, str) or len(set(labels)) != len(labels) or len(labels) < 2:
        raise UserError(f"labels: expected at least two different names, not {labels!r}")
    return list(labels)


def vectors(length: int) -> spaces.Box:
    """The space of all float32 vectors of a length."""
    return spaces.Box(-np.inf, np.inf, (length,), np.float32)
