"""What every address of the arena works on: the arena, who asks, and how an answer looks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rlhf.arena import bodies
from rlhf.arena.live import Live, Writing
from rlhf.arena.prepare import Preparer
from rlhf.arena.results import Results, policy_label, results
from rlhf.arena.sessions import SECONDS, Session, Sessions, cookie_name
from rlhf.arena.store import ArenaVotes
from rlhf.data.votes import Ballot, NoSuchBallot, Vote

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""What a page may load: its own style and script, nothing in line, nothing from elsewhere."""


class Refused(Exception):
    """A request is refused.

    Args:
        status: Of the answer.
        message: For the person.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Arena:
    """What the pages work on."""

    name: str
    """The run's."""
    base: str
    """What its base model is called."""
    policies: Sequence[str]
    """Under comparison."""
    store: ArenaVotes
    live: Live
    sessions: Sessions
    preparer: Preparer | None = None
    """None where only the annotators' own prompts are shown."""
    as_messages: bool = True
    """Whether an annotator's own prompt is the first message of a conversation, and not plain text."""
    _results: tuple[tuple[int, int], Results] | None = None

    def results(self) -> Results:
        """What the votes say; computed again when there are more of them."""
        size = self.store.size()
        if self._results is None or self._results[0] != size:
            self._results = (size, results(self.store.votes()))
        return self._results[1]

    def label(self, policy: str) -> str:
        """What a policy is called on the page."""
        return policy_label(policy, self.base)

    def next_ballot(self, annotator: str) -> Ballot | None:
        """What an annotator judges next; more is prepared if little is left."""
        ballot = self.store.next_ballot(annotator, self.policies)
        if self.preparer is not None:
            self.preparer.wake()
        return ballot


def arena_of(request: Request) -> Arena:
    """The arena that a request is about."""
    return request.app.state.arena


def session_of(request: Request) -> Session | None:
    """The session that a request belongs to; None where nobody here signed its cookie."""
    return arena_of(request).sessions.read(request.cookies.get(_cookie_name(request)))


def annotator_of(request: Request) -> str:
    """Who asks.

    Raises:
        Refused: Nobody has given a name.
    """
    session = session_of(request)
    if session is None or session.annotator is None:
        raise Refused(401, "Please give your name first.")
    return session.annotator


def keep_session(request: Request, response: Response, session: Session) -> None:
    """Have the browser keep a session."""
    response.set_cookie(
        _cookie_name(request), arena_of(request).sessions.cookie(session), max_age=SECONDS, httponly=True,
        samesite="strict", secure=request.url.scheme == "https",
    )  # fmt: skip


def _cookie_name(request: Request) -> str:
    return cookie_name(request.scope["server"][1])


def own_ballot(request: Request, session: Session) -> Ballot:
    """The ballot that a request names.

    Raises:
        Refused: There is none of this number, or it is another annotator's.
    """
    try:
        return arena_of(request).store.own_ballot(_number(request.path_params["ballot"]), session.annotator or "")
    except NoSuchBallot:
        raise Refused(404, "There is no such comparison for you.") from None


def _number(written: str) -> int:
    """The number in a path; 0, which no ballot has, where it is none that SQLite could hold."""
    return int(written) if re.fullmatch("[0-9]{1,18}", written) else 0


def find_writing(request: Request, annotator: str) -> Writing:
    """The comparison being written that a request names.

    Raises:
        Refused: There is none, or it is another annotator's.
    """
    writing = arena_of(request).live.find(request.path_params["writing"], annotator)
    if writing is None:
        raise Refused(404, "These replies are gone; the server was started anew. Please send the prompt again.")
    return writing


def is_preparing(arena: Arena) -> bool:
    """Whether more comparisons may come."""
    return arena.preparer is not None and not arena.preparer.exhausted


def told(request: Request, vote: Vote) -> dict[str, Any]:
    """What is said once a vote is kept: whose replies these were."""
    sides = zip(("a", "b"), vote.ballot.shown_replies, strict=True)
    return {
        "ballot": vote.ballot.id, "verdict": bodies.said(vote.verdict, vote.ballot.swapped),
        **{side: {"policy": reply.policy, "label": arena_of(request).label(reply.policy)} for side, reply in sides},
        "edited": vote.edit is not None, "judged": arena_of(request).store.judged(vote.ballot.annotator),
    }  # fmt: skip
