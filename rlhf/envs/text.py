"""The environment of a text: every action is a token. Axis: L tokens of prompt and completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gymnasium import spaces

from rlhf.data.records import Text
from rlhf.envs.rows import Info, Observation, RowEnv, Rows, vectors
from rlhf.errors import UserError
from rlhf.rewards import RewardFunction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEnv(RowEnv):
    """One token a step, until the end token or `max_new_tokens`; the completion is scored when it ends.

    Observed are the tokens so far: the prompt's, padded at the front, then the completion's, padded at the end (int64
    of shape L); or, if the rows have features, those of the text so far. The limit is part of the task, and the
    completion is scored as it stands. So an episode that reaches it is both truncated and terminated, and no value is
    bootstrapped from a state that never goes on (Pardo et al., "Time Limits in Reinforcement Learning", 2018).

    Args:
        rows: Texts or messages.
        tokenizer: Whose tokens are the actions; it has an end token.
        reward: Called with the completion.
        max_new_tokens: Most tokens of a completion.
        shaped: Whether every step is rewarded, by `shaping` with the reward of the text so far as potential. The best
            policy stays the same; the reward function is called once a step.
        gamma: The agent's discount factor, which shaping needs to know.
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        reward: RewardFunction,
        max_new_tokens: int = 32,
        shaped: bool = False,
        gamma: float = 1.0,
    ) -> None:
        from rlhf.data.tokenize import Codec

        super().__init__(rows, reward)
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens: expected at least 1, not {max_new_tokens}")
        if rows.given_NRD is not None:
            raise UserError("features: they change with every token, so pass a function from a text to a vector")
        self.tokenizer, self.max_new_tokens, self.shaped, self.gamma = tokenizer, max_new_tokens, shaped, gamma
        codec = Codec(tokenizer)
        self._prompts = [codec.prompt(prompt) for prompt in rows.prompts]
        self._room = max(len(ids) for ids in self._prompts)
        self._ids: list[int] = []
        self._potential = 0.0
        self.action_space = spaces.Discrete(len(tokenizer))
        if rows.features is None:
            length = self._room + max_new_tokens
            self.observation_space = spaces.Box(0, len(tokenizer) - 1, (length,), np.int64)
        else:
            self.observation_space = vectors(len(self._text_features(0, [])))

    @property
    def completion(self) -> Text:
        """The completion so far, as the reward function takes it."""
        from rlhf.data.records import as_completion
        from rlhf.policies.completion import decode

        return as_completion(self.rows.prompts[self.row], decode(self._ids, self.tokenizer))

    def _begin(self) -> None:
        self._ids = []
        self._potential = self.rows.score(self.reward, self.row, self.completion) if self.shaped else 0.0

    def _observation(self) -> Observation:
        if self.rows.features is not None:
            return self._text_features(self.row, self._ids)
        prompt, pad = self._prompts[self.row], self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        front, back = self._room - len(prompt), self.max_new_tokens - len(self._ids)
        return np.array([pad] * front + prompt + self._ids + [pad] * back, dtype=np.int64)

    def _text_features(self, row: int, ids: list[int]) -> Observation:
        from rlhf.policies.completion import decode

        assert self.rows.features is not None
        prompt = self.rows.prompts[row]
        start = prompt if isinstance(prompt, str) else decode(self._prompts[row], self.tokenizer)
        return np.asarray(self.rows.features(start + decode(ids, self.tokenizer)), dtype=np.float32)

    def _act(self, action: int) -> tuple[float, bool, bool, Info]:
        self._ids.append(action)
        ended = action == self.tokenizer.eos_token_id
        cut = not ended and len(self._ids) == self.max_new_tokens
        over, info = ended or cut, {"completion": self.completion}
        if not over and not self.shaped:
            return 0.0, False, False, info
        score = self.rows.score(self.reward, self.row, self.completion)
        if not self.shaped:
            return score, True, cut, info
        after = 0.0 if over else score
        reward = (score if over else 0.0) + shaping(self._potential, after, self.gamma)
        self._potential = after
        return reward, over, cut, info


def shaping(before: float, after: float, gamma: float = 1.0) -> float:
    """The reward that a potential adds to a step, F = gamma * Phi(s') - Phi(s).

    Over an episode whose end has potential 0 it adds -Phi(s_0) to the discounted return whatever the agent does, so the
    best policy stays the best. With gamma 1 and the reward of the text so far as Phi, a step is paid the difference it
    makes to that reward.

    Args:
        before: Phi(s), in units of the reward.
        after: Phi(s'); 0 if the episode is over.
        gamma: The discount factor.

    Source: Ng, Harada and Russell, "Policy Invariance under Reward Transformations", 1999, equation 2.
    """
    return gamma * after - before
