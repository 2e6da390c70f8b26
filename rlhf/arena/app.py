"""The arena as a web application: what each address answers. Who may ask at all is the guard's affair."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rlhf.arena import bodies, changes, pages, streams
from rlhf.arena.context import (
    Arena,
    Refused,
    arena_of,
    find_writing,
    is_preparing,
    keep_session,
    own_ballot,
    session_of,
    told,
)
from rlhf.arena.export import jsonl
from rlhf.arena.sessions import Session
from rlhf.data.vote_rows import ROWS
from rlhf.errors import UserError

_STATIC = Path(__file__).parent / "static"
_LOG = logging.getLogger("rlhf.arena")


def application(arena: Arena) -> Starlette:
    """The application.

    Args:
        arena: What it works on.
    """
    routes = [
        Route("/", _page(_home)),
        Route("/write", _page(_write)),
        Route("/ballots/{ballot}", _page(_ballot)),
        Route("/writing/{writing}", _page(_writing)),
        Route("/results", _page(_results)),
        Route("/export/{set}.jsonl", _page(_export)),
        Route("/next", _page(_next)),
        *changes.routes(),
        *streams.routes(),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    handlers = {Refused: _refused, HTTPException: _http_error, sqlite3.Error: _store_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.state.arena = arena
    return app


# ── pages


def _page(answer: Callable[[Request, Session], Response]) -> Callable[[Request], Response]:
    """A page for whoever has given a name, and the page that asks for one for everybody else."""

    def page(request: Request) -> Response:
        arena = arena_of(request)
        session = session_of(request)
        if session is not None and session.annotator is not None:
            return answer(request, session)
        new = session or arena.sessions.new()
        response = _html(request, new, "name.html", status=200 if request.url.path == "/" else 401)
        keep_session(request, response, new)
        return response

    return page


def _html(request: Request, session: Session, template: str, status: int = 200, **values: Any) -> Response:
    arena = arena_of(request)
    text = pages.render(
        template, arena=arena, label=arena.label, annotator=session.annotator, token=arena.sessions.token(session),
        judged=arena.store.judged(session.annotator) if session.annotator else 0, path=request.url.path, **values,
    )  # fmt: skip
    return HTMLResponse(text, status)


def _home(request: Request, session: Session) -> Response:
    assert session.annotator is not None
    arena = arena_of(request)
    ballot = arena.next_ballot(session.annotator)
    if ballot is not None:
        return RedirectResponse(f"/ballots/{ballot.id}", 303)
    return _html(request, session, "waiting.html", preparing=is_preparing(arena))


def _write(request: Request, session: Session) -> Response:
    return _html(request, session, "write.html", longest=bodies.LONGEST_TEXT)


def _ballot(request: Request, session: Session) -> Response:
    ballot = own_ballot(request, session)
    vote = arena_of(request).store.vote_on(ballot)
    return _html(
        request, session, "judge.html", prompt=ballot.comparison.prompt, ballot=ballot.id,
        stream=f"/ballots/{ballot.id}/replies", cast=None if vote is None else told(request, vote),
        vote=vote, typed=ballot.comparison.origin == "typed", longest=bodies.LONGEST_TEXT,
    )  # fmt: skip


def _writing(request: Request, session: Session) -> Response:
    writing = find_writing(request, session.annotator or "")
    if writing.events and writing.events[-1][0] == "ready":
        return RedirectResponse(f"/ballots/{writing.events[-1][1]['ballot']}", 303)
    return _html(
        request, session, "judge.html", prompt=writing.prompt, ballot=None, stream=f"/writing/{writing.id}/replies",
        cast=None, vote=None, typed=True, longest=bodies.LONGEST_TEXT,
    )  # fmt: skip


def _results(request: Request, session: Session) -> Response:
    arena = arena_of(request)
    return _html(request, session, "results.html", results=arena.results(), sets=list(ROWS))


def _export(request: Request, session: Session) -> Response:
    name = request.path_params["set"]
    if name not in ROWS:
        raise Refused(404, "There is no such set.")
    arena = arena_of(request)
    file = f"{''.join(letter if letter.isalnum() else '-' for letter in arena.name)}-{name}.jsonl"
    headers = {"Content-Disposition": f'attachment; filename="{file}"'}
    return Response(jsonl(ROWS[name](arena.store.votes())), 200, headers, "application/jsonl; charset=utf-8")


def _next(request: Request, session: Session) -> Response:
    """What is judged next, for a program."""
    ballot = arena_of(request).next_ballot(session.annotator or "")
    if ballot is None:
        return JSONResponse({"ballot": None, "preparing": is_preparing(arena_of(request))})
    texts = [reply.text for reply in ballot.shown_replies]
    answer = {"ballot": ballot.id, "prompt": ballot.comparison.prompt, "a": texts[0], "b": texts[1]}
    return JSONResponse(answer)


# ── refusals


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _refusal(request, error.status, error.message)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refusal(request, error.status_code, error.detail)


def _store_error(request: Request, error: Exception) -> Response:
    """A full disk, or a damaged file of votes; the page that says so asks it nothing."""
    _LOG.error("%s: %s", arena_of(request).store.file, UserError(str(error)))
    message = "The votes cannot be read or saved just now; the server's log says why. Please try again."
    return _refusal(request, 503, message, Session(""))


def _refusal(request: Request, status: int, message: str, session: Session | None = None) -> Response:
    where = f"{request.method} {request.url.path}"
    _LOG.warning("refused with %d: %s: %s", status, UserError(where[:200]), UserError(message))
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": message}, status)
    return _html(request, session or session_of(request) or Session(""), "message.html", status, message=message)
