"""Serves one policy as OpenAI's chat completions, for clients and judges that know them."""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rlhf.artifacts.rounds import run_name
from rlhf.data.records import Unusable
from rlhf.errors import UserError, reason
from rlhf.serving.asynchronous import pieces_of, while_connected
from rlhf.serving.guard import Guard, Rules, error_body
from rlhf.serving.listen import Address, serve
from rlhf.serving.questions import BadRequest, Question, read_question
from rlhf.serving.replies import NoRoom, Replier, Stream, load_replier

MOST_WAITING = 32
"""Replies under way; the model writes one at a time, and the others wait."""
_FAILED = "the model could not reply"
RATE = "6000/minute"
"""Requests of a client; a judge asks as fast as a small model answers."""

log = logging.getLogger("rlhf.serving")


def application(replier: Replier, model: str, address: Address) -> Guard:
    """A server of one policy, behind its guard.

    Args:
        replier: The policy.
        model: What clients call it.
        address: Where it is going to listen.
    """
    server = _Server(replier, model)
    routes = [
        Route("/health", server.health),
        Route("/v1/models", server.models),
        Route("/v1/models/{model:path}", server.model),
        Route("/v1/chat/completions", server.complete, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {BadRequest: _bad_request, HTTPException: _http_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, address, Rules(rate=RATE, open_paths=("/health",)))


def serve_stage(folder: Path, opened: socket.socket, address: Address, say: Callable[[str], None]) -> None:
    """Serve a finished stage until SIGINT or SIGTERM.

    Args:
        folder: The stage's folder.
        opened: Where to listen; it is closed at the end.
        address: What that is.
        say: Tells a person where the model is, and the token if it is new.

    Raises:
        UserError: The stage cannot be loaded.
    """
    model = f"{run_name(folder.parent)}:{folder.name}"
    with opened:
        app = application(load_replier(folder.parent, folder.name), model, address)
        say(f"model {model} at {address.url}/v1")
        if address.drawn:
            say(f"token {address.token}")
        serve(app, opened)


class _Server:
    """What the paths do."""

    def __init__(self, replier: Replier, model: str) -> None:
        self._replier, self._model, self._started = replier, model, int(time.time())
        self._waiting = 0

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._about()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["model"])
        return JSONResponse(self._about())

    async def complete(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise BadRequest("a request is JSON: Content-Type: application/json", status=415)
        question = read_question(await request.body())
        self._check_model(question.model)
        if self._waiting >= MOST_WAITING:
            raise BadRequest(f"{MOST_WAITING} replies are under way already; ask again later", status=429)
        self._waiting += 1
        try:
            stop = threading.Event()
            begin = partial(self._replier.stream, question.prompt(), question.sampling(), stop)
            stream = await anyio.to_thread.run_sync(begin)
        except Unusable as problem:
            self._waiting -= 1
            code = "context_length_exceeded" if isinstance(problem, NoRoom) else None
            raise BadRequest(problem.reason, "messages", code=code) from None
        except BaseException:
            self._waiting -= 1
            raise
        return _Reply(self, question, stream, stop)

    def done(self) -> None:
        """A reply has ended."""
        self._waiting -= 1

    def envelope(self, kind: str) -> dict[str, Any]:
        """What every answer says about itself."""
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()),
            "model": self._model, "system_fingerprint": self._replier.artifact,
        }  # fmt: skip

    def _about(self) -> dict[str, Any]:
        return {"id": self._model, "object": "model", "created": self._started, "owned_by": "rlhf"}

    def _check_model(self, name: str) -> None:
        if name != self._model:
            raise BadRequest(f"this server has one model, {self._model}", "model", 404, "model_not_found")


class _Reply(Response):
    """A reply that is written while its client waits, in one piece or as events."""

    def __init__(self, server: _Server, question: Question, stream: Stream, stop: threading.Event) -> None:
        super().__init__()
        self._server, self._question, self._stream, self._stop = server, question, stream, stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        work = self._events if self._question.stream else self._whole
        try:
            await while_connected(receive, partial(work, scope, receive, send))
        finally:
            self._stop.set()
            self._server.done()

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            text = "".join([piece async for piece in self._pieces()])
        except Exception as problem:
            answer = JSONResponse(_failure(problem), 500)
        else:
            message = {"role": "assistant", "content": text, "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason()}
            envelope = self._server.envelope("chat.completion")
            answer = JSONResponse({**envelope, "choices": [choice], "usage": self._usage()})
        await answer(scope, receive, send)

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for data in self._chunks():
                await _send_event(send, json.dumps(data))
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await _send_event(send, json.dumps(error_body("the server ends", 503)))
            raise
        except Exception as problem:
            await _send_event(send, json.dumps(_failure(problem)))
        else:
            await _send_event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The contents of the events."""
        envelope = self._server.envelope("chat.completion.chunk")
        usage = {"usage": None} if self._question.stream_options.include_usage else {}

        def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return {**envelope, "choices": [choice], **usage}

        yield chunk({"role": "assistant", "content": ""})
        async for piece in self._pieces():
            yield chunk({"content": piece})
        yield chunk({}, self._reason())
        if usage:
            yield {**envelope, "choices": [], "usage": self._usage()}

    def _pieces(self) -> AsyncIterator[str]:
        return pieces_of(self._stream, self._stop)

    def _reason(self) -> str:
        return "stop" if self._stream.finished else "length"

    def _usage(self) -> dict[str, int]:
        prompt, written = self._stream.prompt_tokens or 0, self._stream.completion_tokens or 0
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


async def _send_event(send: Send, data: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


def _failure(problem: Exception) -> dict[str, Any]:
    """What a client is told of a reply that failed; the log has the traceback."""
    log.error(_FAILED, exc_info=problem)
    return error_body(f"{_FAILED}: {reason(problem)}" if isinstance(problem, UserError) else _FAILED, 500)


def _bad_request(request: Request, problem: BadRequest) -> Response:
    body = error_body(problem.reason, problem.status, problem.param, problem.code)
    return JSONResponse(body, problem.status, {"Retry-After": "1"} if problem.status == 429 else None)


def _http_error(request: Request, problem: HTTPException) -> Response:
    return JSONResponse(error_body(problem.detail, problem.status_code), problem.status_code, problem.headers)
