"""Comparisons whose replies are being written while the annotator reads: to their own prompts, and to later turns."""

from __future__ import annotations

import logging
import random
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.arena.contestants import Contestant, sampling_of, sampling_record
from rlhf.arena.scores import Judges
from rlhf.arena.store import ArenaVotes
from rlhf.config.project import EvaluateConfig
from rlhf.data.records import Prompt, Text, Unusable
from rlhf.data.votes import Reply
from rlhf.errors import UserError

AT_ONCE = 16
"""Most comparisons written at a time."""
KEPT = 256
"""Finished ones of which the events are kept, for a page that is loaded again."""
_PATIENCE = 60.0
"""Longest that preparing waits for people, in seconds."""
_LOG = logging.getLogger("rlhf.arena")


class TooMany(Exception):
    """As many replies are being written as may be at a time."""


@dataclass
class Writing:
    """A comparison that is being written."""

    id: str
    annotator: str
    prompt: Text
    sides: tuple[Contestant, Contestant]
    """Who writes the reply shown first, and the other."""
    parent: int | None
    seed: int
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """What the page is told: `piece` (side, text), then `ready` (ballot) or `failed` (message)."""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        """Whether there are no more events."""
        return bool(self.events) and self.events[-1][0] in ("ready", "failed")


class Live:
    """Writes comparisons, each in threads of its own that no closed page stops.

    Args:
        store: Where they are kept once they are whole.
        contestants: Who replies.
        judges: Who scores.
        settings: How replies are sampled.
        seed: Of the order in which replies are shown; None draws it.
    """

    def __init__(
        self,
        store: ArenaVotes,
        contestants: Sequence[Contestant],
        judges: Judges,
        settings: EvaluateConfig,
        seed: int | None = None,
    ) -> None:
        self.store, self.judges, self.settings = store, judges, settings
        self._contestants = {contestant.name: contestant for contestant in contestants}
        self._random = random.Random(seed)
        self._lock, self._writings = threading.Lock(), dict[str, Writing]()
        self._idle = threading.Condition()

    def start(self, annotator: str, prompt: Text, parent: int | None = None, pair: Sequence[str] = ()) -> Writing:
        """Start to write two replies.

        Args:
            annotator: Who asks; what was being written for them ends.
            prompt: What they ask.
            parent: The ballot that the conversation goes on from.
            pair: The policies that reply; without, or where one is not here, the two compared least.

        Raises:
            TooMany: As many are being written as may be; they go on, the annotator's too.
        """
        known = [name for name in pair if name in self._contestants]
        names = list(known if len(known) == 2 else self.store.least_compared(list(self._contestants))[0])
        with self._lock:
            at_work = [each for each in self._writings.values() if not each.ended]
            if len(at_work) >= AT_ONCE:
                raise TooMany
            for each in at_work:
                if each.annotator == annotator:
                    each.stop.set()
            self._random.shuffle(names)
            sides = (self._contestants[names[0]], self._contestants[names[1]])
            writing = Writing(
                secrets.token_urlsafe(12), annotator, prompt, sides, parent, self._random.randrange(2**31)
            )  # fmt: skip
            self._writings[writing.id] = writing
            for old in list(self._writings)[:-KEPT]:
                if self._writings[old].ended:
                    del self._writings[old]
        threading.Thread(target=self._write, args=(writing,), name="live", daemon=True).start()
        return writing

    def find(self, number: str, annotator: str) -> Writing | None:
        """A comparison that is being written, or was, for an annotator."""
        writing = self._writings.get(number)
        return writing if writing is not None and writing.annotator == annotator else None

    def people_first(self) -> None:
        """Wait until nothing is being written."""
        with self._idle:
            self._idle.wait_for(lambda: all(each.ended for each in list(self._writings.values())), _PATIENCE)

    def stop(self) -> None:
        """End what is being written."""
        for each in list(self._writings.values()):
            each.stop.set()

    def _write(self, writing: Writing) -> None:
        replies: dict[str, Reply] = {}
        problems: list[str] = []

        def one(side: str, contestant: Contestant) -> None:
            try:
                replies[side] = self._reply(writing, side, contestant)
            except Unusable as error:
                problems.append(error.reason)
            except Exception as error:
                _LOG.warning("a reply failed: %s: %s", contestant.name, UserError(str(error) or type(error).__name__))
                problems.append("one of the policies gave no reply; the server's log says why")

        other = threading.Thread(target=one, args=("b", writing.sides[1]), daemon=True)
        other.start()
        one("a", writing.sides[0])
        other.join()
        try:
            if writing.stop.is_set():
                event: tuple[str, dict[str, Any]] = ("failed", {"message": "these replies were stopped"})
            elif problems:
                event = ("failed", {"message": problems[0]})
            else:
                event = ("ready", {"ballot": self._keep(writing, (replies["a"], replies["b"]))})
        except Exception as error:
            _LOG.warning("replies could not be kept: %s", UserError(str(error) or type(error).__name__))
            event = ("failed", {"message": "the replies could not be kept; the server's log says why"})
        writing.events.append(event)
        with self._idle:
            self._idle.notify_all()

    def _reply(self, writing: Writing, side: str, contestant: Contestant) -> Reply:
        stream = contestant.replier.stream(writing.prompt, sampling_of(self.settings, writing.seed), writing.stop)
        pieces = []
        for piece in stream:
            pieces.append(piece)
            writing.events.append(("piece", {"side": side, "text": piece}))
        return contestant.reply(writing.prompt, "".join(pieces), stream.finished)

    def _keep(self, writing: Writing, replies: tuple[Reply, Reply]) -> int:
        """Keep a comparison and the ballot in the order in which it was watched; the ballot's number."""
        prompt = Prompt(writing.prompt)
        first, second = self.judges.score([prompt, prompt], replies)
        number = self.store.add(
            writing.prompt, (first, second), sampling=sampling_record(sampling_of(self.settings, writing.seed)),
            origin="typed", parent=writing.parent,
        )  # fmt: skip
        return self.store.show_as_added(number, writing.annotator).id
