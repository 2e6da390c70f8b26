"""Replies as they come, told to a page as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlhf.arena.context import annotator_of, arena_of, find_writing, is_preparing, own_ballot
from rlhf.arena.sessions import Session

_TICK, _LOOK = 0.05, 0.5
"""Seconds between looks at a reply that is being written, and at comparisons that are being prepared."""


def routes() -> list[Route]:
    """The addresses."""
    return [
        Route("/ballots/{ballot}/replies", _ballot_replies),
        Route("/writing/{writing}/replies", _writing_replies),
        Route("/waiting", _waiting),
    ]


async def _ballot_replies(request: Request) -> Response:
    session = Session("", annotator_of(request))
    ballot = await run_in_threadpool(own_ballot, request, session)

    async def events() -> AsyncIterator[dict[str, str]]:
        for side, reply in zip(("a", "b"), ballot.shown_replies, strict=True):
            yield _event("piece", {"side": side, "text": reply.text})
        yield _event("ready", {"ballot": ballot.id})

    return EventSourceResponse(events())


async def _writing_replies(request: Request) -> Response:
    writing = find_writing(request, annotator_of(request))

    async def events() -> AsyncIterator[dict[str, str]]:
        sent = 0
        while True:
            new = writing.events[sent:]
            sent += len(new)
            for kind, data in _joined(new):
                yield _event(kind, data)
            if new and new[-1][0] in ("ready", "failed"):
                return
            await asyncio.sleep(_TICK)

    return EventSourceResponse(events())


async def _waiting(request: Request) -> Response:
    """Tells a page that waits when there is something to judge, or why there is not."""
    annotator, arena = annotator_of(request), arena_of(request)

    async def events() -> AsyncIterator[dict[str, str]]:
        said = None
        while True:
            if await run_in_threadpool(arena.store.unseen, annotator, arena.policies):
                yield _event("ready", {})
                return
            state = {"preparing": is_preparing(arena), "problem": arena.preparer.problem if arena.preparer else None}
            if state != said:
                yield _event("state", state)
                said = state
            await asyncio.sleep(_LOOK)

    return EventSourceResponse(events())


def _joined(events: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Events with the pieces of each side in one."""
    texts = {side: "".join(data["text"] for kind, data in events if data.get("side") == side) for side in ("a", "b")}
    pieces: list[tuple[str, dict[str, Any]]] = [
        ("piece", {"side": side, "text": text}) for side, text in texts.items() if text
    ]
    return [*pieces, *(event for event in events if event[0] != "piece")]


def _event(kind: str, data: dict[str, Any]) -> dict[str, str]:
    return {"event": kind, "data": json.dumps(data)}
