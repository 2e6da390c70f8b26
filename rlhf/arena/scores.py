"""What the run's judges say of replies that people judge, so that both can be compared."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlhf.data.records import Prompt, as_completion
from rlhf.data.votes import Reply
from rlhf.errors import UserError
from rlhf.rewards import RewardFunction, columns_of
from rlhf.rewards.endpoint import EndpointJudge

_LOG = logging.getLogger("rlhf.arena")


class Judges:
    """The judges of a run.

    Args:
        scoring: Reward models and functions, by name.
        comparing: Language models that compare two replies, by name.
        certain: The reward model by whose uncertainty comparisons are chosen; None for none.
    """

    def __init__(
        self,
        scoring: Mapping[str, RewardFunction] | None = None,
        comparing: Mapping[str, EndpointJudge] | None = None,
        certain: str | None = None,
    ) -> None:
        self.scoring, self.comparing, self.certain = scoring or {}, comparing or {}, certain
        self._lock = threading.Lock()
        self._failed: set[str] = set()

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.scoring, *self.comparing]

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[Reply]:
        """The replies with the scores of those that score; a judge that fails gives none, and the log says so once.

        Args:
            prompts: The prompt of each reply; its other columns go to the judges.
            replies: What is scored.
        """
        texts = [prompt.prompt for prompt in prompts]
        written = [as_completion(prompt.prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
        columns = columns_of([prompt.extra for prompt in prompts])
        found: list[dict[str, float | None]] = [{} for _ in replies]
        for name, judge in self.scoring.items():
            try:
                with self._lock:
                    values = judge(texts, written, **columns)
            except (UserError, TypeError, ValueError, KeyError) as error:  # a function that wants columns, say
                self._say_once(name, error)
                values = [None] * len(replies)
            for scores, value in zip(found, values, strict=True):
                scores[name] = value if value is not None and math.isfinite(value) else None
        return [replace(reply, scores=scores) for reply, scores in zip(replies, found, strict=True)]

    def compare(self, prompts: Sequence[Prompt], pairs: Sequence[tuple[Reply, Reply]]) -> list[tuple[Reply, Reply]]:
        """Pairs of replies with what the comparing judges say added to the scores: the share of a pair that each won.

        Args:
            prompts: The prompt of each pair.
            pairs: Two replies each.
        """
        result = list(pairs)
        for name, judge in self.comparing.items():
            asked = [
                (prompt.prompt, *(as_completion(prompt.prompt, reply.text) for reply in pair))
                for prompt, pair in zip(prompts, result, strict=True)
            ]
            try:
                shares = judge.prefer(*(list(column) for column in zip(*asked, strict=True))) if asked else []
            except UserError as error:
                self._say_once(name, error)
                shares = [None] * len(result)
            for place, share in enumerate(shares):
                first, second = result[place]
                other = None if share is None else 1.0 - share
                result[place] = (
                    replace(first, scores={**first.scores, name: share}),
                    replace(second, scores={**second.scores, name: other}),
                )
        return result

    def _say_once(self, name: str, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            _LOG.warning("judge %s gave no scores: %s", name, UserError(str(error)))
