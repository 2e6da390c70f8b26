"""What annotators change: their name, a vote, a prompt of their own."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pydantic
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlhf.arena import bodies
from rlhf.arena.context import Arena, Refused, annotator_of, arena_of, keep_session, session_of, told
from rlhf.arena.live import TooMany
from rlhf.arena.sessions import HEADER, Session, annotator_name
from rlhf.arena.store import Contradicted
from rlhf.data.records import Text, as_conversation
from rlhf.data.votes import NoSuchBallot

Body = TypeVar("Body", bound=pydantic.BaseModel)


def routes() -> list[Route]:
    """The addresses."""
    return [
        Route("/name", _change(bodies.NameBody, _give_name), methods=["POST"]),
        Route("/votes", _change(bodies.VoteBody, _vote), methods=["POST"]),
        Route("/prompts", _change(bodies.PromptBody, _ask), methods=["POST"]),
    ]


def _change(
    kind: type[Body], answer: Callable[[Request, Session, Body], Response]
) -> Callable[[Request], Awaitable[Response]]:
    """Something that changes what is kept: a JSON object, from a page of this session."""

    async def change(request: Request) -> Response:
        session = session_of(request)
        if session is None:
            raise Refused(401, "Your session has ended; please load the page again.")
        if not arena_of(request).sessions.is_token(session, request.headers.get(HEADER, "")):
            raise Refused(403, "This page is not of your session; please load it again.")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused(415, "Only JSON is taken.")
        try:
            body = kind.model_validate_json(await request.body())
        except pydantic.ValidationError as error:
            raise Refused(422, _problem(error)) from None
        return await run_in_threadpool(answer, request, session, body)

    return change


def _problem(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}"


def _give_name(request: Request, session: Session, body: bodies.NameBody) -> Response:
    try:
        named = replace(session, annotator=annotator_name(body.name))
    except ValueError as error:
        raise Refused(422, str(error)) from None
    response = JSONResponse({"name": named.annotator})
    keep_session(request, response, named)
    return response


def _vote(request: Request, session: Session, body: bodies.VoteBody) -> Response:
    annotator, store = annotator_of(request), arena_of(request).store
    try:
        ballot = store.own_ballot(body.ballot, annotator)
    except NoSuchBallot:
        raise Refused(404, "There is no such comparison for you.") from None
    seconds = min(body.seconds, max(0.0, time.time() - ballot.shown))
    try:
        vote = store.cast_once(
            ballot, body.verdict_on(ballot), seconds=seconds, good=body.good_on(ballot),
            edit=(body.edit or "").strip(), reason=(body.reason or "").strip(),
        )  # fmt: skip
    except Contradicted:
        raise Refused(409, "You have judged this comparison already; the first vote stands.") from None
    return JSONResponse(told(request, vote))


def _ask(request: Request, session: Session, body: bodies.PromptBody) -> Response:
    annotator, arena = annotator_of(request), arena_of(request)
    text = body.text.strip()
    if not bodies.has_visible(text):
        raise Refused(422, "Please write something first.")
    prompt: Text = as_conversation(text) if arena.as_messages else text
    pair: list[str] = []
    if body.after is not None:
        prompt, pair = _next_turn(arena, annotator, body, text)
    try:
        writing = arena.live.start(annotator, prompt, body.after, pair)
    except TooMany:
        raise Refused(503, "Many replies are being written just now; please try again in a moment.") from None
    return JSONResponse({"page": f"/writing/{writing.id}"}, 202)


def _next_turn(arena: Arena, annotator: str, body: bodies.PromptBody, text: str) -> tuple[Text, list[str]]:
    """A conversation that goes on after a ballot, and the policies that replied in it."""
    try:
        ballot = arena.store.own_ballot(body.after or 0, annotator)
    except NoSuchBallot:
        raise Refused(404, "There is no such comparison for you.") from None
    vote = arena.store.vote_on(ballot)
    if vote is None:
        raise Refused(409, "Please judge the replies first.")
    texts = dict(zip(("a", "b"), (reply.text for reply in ballot.shown_replies), strict=True))
    texts["edit"] = vote.edit or ""
    before = ballot.comparison.prompt
    if isinstance(before, str) and not arena.as_messages:
        raise Refused(422, "These policies reply to one prompt; they hold no conversations.")
    if not texts.get(body.reply or "", "").strip():
        raise Refused(422, "Please choose the reply to go on from.")
    said = {"role": "assistant", "content": texts[body.reply or ""].strip()}
    conversation = [*as_conversation(before), said, {"role": "user", "content": text}]
    return conversation, [reply.policy for reply in ballot.comparison.replies]
