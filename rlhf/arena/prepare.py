"""Prepares comparisons ahead of the annotators: samples replies to prompts of the pool, scores them, keeps them.

What was prepared stays in the store, and no two policies are compared twice on a prompt.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from rlhf.arena.contestants import Contestant, sampling_of, sampling_record
from rlhf.arena.prompts import Candidate, Pool, candidates_of, most_informative
from rlhf.arena.scores import Judges
from rlhf.arena.store import ArenaVotes
from rlhf.config.project import EvaluateConfig
from rlhf.data.records import Prompt
from rlhf.data.splits import content_key
from rlhf.data.votes import Reply
from rlhf.errors import UserError

WAVE = 32
"""Prompts that replies are sampled to together."""
BATCH = 8
"""Of these, prompts between which somebody who waits for a reply to their own prompt comes first."""
AHEAD = 24
"""Comparisons that an annotator has not seen yet, below which more are prepared."""
_PAUSE = 10.0
"""Seconds after which what failed is tried again."""
_LOG = logging.getLogger("rlhf.arena")


class Preparer(threading.Thread):
    """Prepares comparisons until the pool has no more.

    Args:
        store: Where they go.
        pool: The prompts.
        contestants: Who replies.
        judges: Who scores.
        settings: How replies are sampled.
        seed: Of the sampling.
        people_first: Returns once nobody waits for a reply that is being written.
    """

    def __init__(
        self,
        store: ArenaVotes,
        pool: Pool,
        contestants: Sequence[Contestant],
        judges: Judges,
        settings: EvaluateConfig,
        seed: int = 0,
        people_first: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="prepare", daemon=True)
        self.store, self.pool, self.contestants, self.judges = store, pool, contestants, judges
        self.settings, self.seed, self._people_first = settings, seed, people_first
        self.problem: str | None = None
        """Why nothing can be prepared at the moment."""
        self.exhausted = False
        """Whether the pool has no more."""
        self._ending, self._wake = threading.Event(), threading.Event()
        self._done: dict[bytes, set[frozenset[str]]] = {}
        self._refused: set[bytes] = set()

    @property
    def names(self) -> list[str]:
        """The policies."""
        return [contestant.name for contestant in self.contestants]

    def wake(self) -> None:
        """Look again whether more is to be prepared."""
        self._wake.set()

    def stop(self) -> None:
        """End, once the batch at hand is written."""
        self._ending.set()
        self._wake.set()

    def run(self) -> None:
        """Prepare waves of comparisons as annotators need them."""
        for key, pair in self.store.prepared():
            self._done.setdefault(key, set()).add(pair)
        while not self._ending.is_set() and not self.exhausted:
            if self._enough():
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self.exhausted = not self.wave()
                self.problem = None
            except Exception as error:  # an endpoint that is gone, say: the page stays, and it is tried again
                self.problem = str(UserError(str(error) or type(error).__name__))
                _LOG.warning("comparisons cannot be prepared: %s", self.problem)
                self._ending.wait(_PAUSE)

    def wave(self) -> bool:
        """Prepare comparisons of the next prompts.

        Returns:
            Whether there were any.
        """
        prompts = self._next_prompts()
        if not prompts:
            return False
        seed = self.seed + self.store.size()[0]
        rows: list[dict[str, Reply]] = [{} for _ in prompts]
        for contestant in self.contestants:
            for place, reply in self._replies(contestant, prompts, seed):
                rows[place][contestant.name] = reply
        if self._ending.is_set():
            return True
        chosen = most_informative(self._candidates(prompts, rows), self.judges.certain)
        pairs = self.judges.compare([prompts[each.prompt] for each in chosen], [each.replies for each in chosen])
        for each, replies in zip(chosen, pairs, strict=True):
            prompt = prompts[each.prompt]
            sampling = sampling_record(sampling_of(self.settings, seed + each.prompt // BATCH))
            self.store.add(
                prompt.prompt, replies, sampling=sampling, columns=prompt.extra, origin=self.pool.origin
            )  # fmt: skip
            self._done.setdefault(content_key(prompt.prompt), set()).add(each.pair)
        compared = {each.prompt for each in chosen}
        for number, prompt in enumerate(prompts):
            if number not in compared:  # all replies are equal, or there are none
                self._refused.add(content_key(prompt.prompt))
        return True

    def _enough(self) -> bool:
        annotators = ["", *self.store.progress()]
        return all(len(self.store.unseen(name, self.names)) >= AHEAD for name in annotators)

    def _next_prompts(self) -> list[Prompt]:
        """The next prompts, those first that were compared least; without those that all pairs were compared on."""
        pairs = {frozenset(pair) for pair in combinations(self.names, 2)}
        left: list[tuple[int, bytes, Prompt]] = []
        for prompt in self.pool.prompts:
            key = content_key(prompt.prompt)
            done = len(self._done.get(key, set()) & pairs)
            if key not in self._refused and done < len(pairs):
                left.append((done, key, prompt))
        chosen: list[Prompt] = []
        for _, key, prompt in sorted(left, key=lambda each: each[:2]):
            if len(chosen) == WAVE:
                break
            if any(contestant.refusal(prompt) for contestant in self.contestants):
                self._refused.add(key)
            else:
                chosen.append(prompt)
        return chosen

    def _replies(self, contestant: Contestant, prompts: Sequence[Prompt], seed: int) -> Iterator[tuple[int, Reply]]:
        for start in range(0, len(prompts), BATCH):
            self._people_first()
            if self._ending.is_set():
                return
            batch = prompts[start : start + BATCH]
            found = contestant.replies(batch, self.settings, seed + start // BATCH, self._ending)
            written = [(place, reply) for place, reply in enumerate(found, start) if reply is not None]
            scored = self.judges.score([prompts[place] for place, _ in written], [reply for _, reply in written])
            yield from zip((place for place, _ in written), scored, strict=True)

    def _candidates(self, prompts: Sequence[Prompt], rows: Sequence[dict[str, Reply]]) -> list[Candidate]:
        return [
            candidate
            for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
            for candidate in candidates_of(number, row, self._done.get(content_key(prompt.prompt), set()))
        ]
